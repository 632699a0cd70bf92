"""Which publications each method, model and data set comes from: keys of `references.bib`.

One table for each key of a configuration that names something. A name without keys is a method of
this package: no publication describes it, so whoever uses it cites the package.
"""

from collections.abc import Mapping

Table = Mapping[str, tuple[str, ...]]

ALGORITHMS: Table = {
  'fedavg': ('mcmahan2017communication', 'reddi2021adaptive'),
  'fedsgd': ('mcmahan2017communication',),
  'dp_sgd': ('abadi2016deep', 'mcmahan2018learning'),
  'fedprox': ('li2020federated',),
  'scaffold': ('karimireddy2020scaffold',),
  'fednova': ('wang2020tackling',),
  'feddyn': ('acar2021federated',),
  'mime': ('karimireddy2021breaking',),
  'mime_lite': ('karimireddy2021breaking',),
}
SERVER_OPTIMIZERS: Table = {
  'sgd': ('mcmahan2017communication',),
  'fedavgm': ('hsu2019measuring',),
  'fedadagrad': ('reddi2021adaptive',),
  'fedadam': ('reddi2021adaptive',),
  'fedyogi': ('reddi2021adaptive',),
}
SAMPLERS: Table = {
  'uniform': ('mcmahan2017communication',),
  'poisson': ('mcmahan2018learning',),
  'round_robin': (),
  'min_separation': ('kairouz2021practical',),
  'importance': ('horvitz1952generalization', 'chen2020optimal'),
  'power_of_choice': ('cho2020client',),
  'oort': ('lai2021oort',),
  'contribution': ('liu2022gtg', 'wang2020principled'),
}
TRACES: Table = {'diurnal': (), 'markov': ()}
WEIGHINGS: Table = {
  'examples': ('mcmahan2017communication',),
  'equal': ('mcmahan2018learning',),
  'capped': ('mcmahan2018learning',),
  'given': (),
}
ATTACKS: Table = {
  'sign_flip': ('li2019rsa',),
  'gaussian': ('blanchard2017machine',),
  'scaling': ('bagdasaryan2020backdoor',),
  'label_flip': ('fang2020local',),
  'alie': ('baruch2019little',),
  'ipm': ('xie2020fall',),
  'min_max': ('shejwalkar2021manipulating',),
  'min_sum': ('shejwalkar2021manipulating',),
  'mimic': ('karimireddy2022byzantine',),
  'backdoor': ('gu2017badnets', 'bagdasaryan2020backdoor'),
}
PRIVACY: Table = {
  'central': ('mcmahan2018learning',),
  'laplace': ('dwork2006calibrating',),
  'adaptive_clip': ('andrew2021differentially',),
  'local': ('kasiviswanathan2011what', 'duchi2013local'),
  'local_laplace': ('dwork2006calibrating', 'kasiviswanathan2011what', 'duchi2013local'),
  'local_discrete': ('canonne2020discrete', 'kasiviswanathan2011what', 'duchi2013local'),
  'distributed': ('kairouz2021distributed', 'agarwal2021skellam'),
  'tree': ('kairouz2021practical', 'honaker2015efficient'),
  'matrix_factorization': ('choquette2023amplified', 'mcmahan2024hassle'),
}
COMPRESSION: Table = {
  'top_k': ('aji2017sparse', 'stich2018sparsified'),
  'random_k': ('konecny2016federated', 'stich2018sparsified'),
  'quantize': ('alistarh2017qsgd',),
  'sign': ('karimireddy2019error',),
  'ternary': ('wen2017terngrad',),
  'rotate': ('suresh2017distributed',),
  'drive': ('vargaftik2021drive',),
  'eden': ('vargaftik2022eden',),
  'low_rank': ('vogels2019powersgd',),
  'power_sgd': ('vogels2019powersgd',),
  'error_feedback': ('seide2014one', 'stich2018sparsified', 'karimireddy2019error'),
  'chain': (),
  'downlink': (),
}
SECURE: Table = {
  'integers': ('bonawitz2017practical', 'kairouz2021distributed'),
  'mask': ('bonawitz2017practical', 'bell2020secure'),
}
AGGREGATION: Table = {
  'median': ('yin2018byzantine',),
  'trimmed_mean': ('yin2018byzantine',),
  'krum': ('blanchard2017machine',),
  'multi_krum': ('blanchard2017machine',),
  'bulyan': ('elmhamdi2018hidden',),
  'geometric_median': ('pillutla2022robust',),
  'centered_clipping': ('karimireddy2021learning',),
  'norm_bounding': ('sun2019really',),
  'dnc': ('shejwalkar2021manipulating',),
  'signguard': ('xu2022byzantine',),
  'bucketing': ('karimireddy2022byzantine',),
  'nnm': ('allouah2023fixing',),
}
MECHANISMS: Table = {
  'gaussian': ('dwork2014algorithmic', 'abadi2016deep'),
  'laplace': ('dwork2006calibrating',),
  'discrete_gaussian': ('canonne2020discrete', 'kairouz2021distributed'),
  'skellam': ('agarwal2021skellam',),
  'tree': ('kairouz2021practical', 'honaker2015efficient'),
  'matrix': (
    'choquette2023amplified', 'dvijotham2024efficient', 'mcmahan2024hassle', 'kalinin2024banded',
    'mckenna2024scaling',
  ),
}  # fmt: skip
ACCOUNTANTS: Table = {
  'rdp': ('mironov2017renyi',),
  'pld': ('doroshenko2022connect',),
  'auto': ('mironov2017renyi', 'doroshenko2022connect'),
}
MODELS: Table = {
  'logistic': (),
  'mlp': ('mcmahan2017communication',),
  'cnn': ('reddi2021adaptive',),
  'cnn_mcmahan': ('mcmahan2017communication',),
  'lenet': ('li2022federated',),
  'resnet_gn': ('he2016deep', 'wu2018group', 'hsieh2020noniid'),
  'char_lstm': ('hochreiter1997long', 'reddi2021adaptive'),
  'transformer': ('vaswani2017attention', 'radford2019language'),
}
DATA: Table = {
  'digits': ('alpaydin1998optical',),
  'synthetic': ('li2020federated',),
  'fashion_mnist': ('xiao2017fashion',),
  'fed_emnist': ('caldas2018leaf',),
  'fed_emnist/digits': ('caldas2018leaf',),
  'fed_shakespeare': ('mcmahan2017communication', 'caldas2018leaf'),
  'fed_cifar100': ('krizhevsky2009learning', 'reddi2021adaptive'),
  'fed_stackoverflow': ('tff2019stackoverflow', 'reddi2021adaptive'),
}
PARTITIONS: Table = {
  'iid': ('mcmahan2017communication',),
  'blocks': (),
  'dirichlet': ('yurochkin2019bayesian', 'li2022federated'),
  'flower_dirichlet': ('yurochkin2019bayesian', 'beutel2020flower'),
  'inner_dirichlet': ('acar2021federated', 'beutel2020flower'),
  'labels_per_client': ('li2022federated',),
  'quantity_skew': ('li2022federated',),
  'sizes': ('acar2021federated', 'beutel2020flower'),
  'feature_noise': ('li2022federated',),
  'natural': (),
  'column': (),
}

# What a `[[stages]]` table may name, and what an option of one may name.
STAGES: Table = {**ATTACKS, **PRIVACY, **COMPRESSION, **SECURE, **AGGREGATION}
# Of `model.statistics`, where it is not 'refuse'.
STATISTICS: Table = {
  'average': ('ioffe2015batch',),
  'local': ('ioffe2015batch', 'li2021fedbn'),
}
# Of `client.dtype`, where it is not 'float32', and of `client.remat`, where it is true.
DTYPES: Table = {'bfloat16': ('micikevicius2018mixed', 'kalamkar2019study')}
REMAT: Table = {'on': ('chen2016training',)}
# Key of a configuration -> the table of the names that it takes.
KEYS: Mapping[str, Table] = {
  'data.name': DATA,
  'data.partition': PARTITIONS,
  'model.name': MODELS,
  'algorithm.name': ALGORITHMS,
  'server.optimizer': SERVER_OPTIMIZERS,
  'selection.name': SAMPLERS,
  'selection.availability.use': TRACES,
  'weighting.name': WEIGHINGS,
}
