"""The Fashion-MNIST rows of NIID-Bench: four methods on five partitions.

Reference: Li, Diao, Chen, He (2022), Federated learning on non-IID data silos: an experimental
study, arXiv 2102.02079. The numbers are those of Flower's baseline `niid_bench`, which reproduces
them: the mean and the deviation of its seeds, and its seed 42 in an earlier edition of its page.
"""

from fedjax_mem.studies.cells import Number, Published

# Setting -> (mean, deviation, seed 42) of each method, in the order of `_METHODS`.
_ROWS = {
  'iid': ((89.23, 0.45, 89.0), (89.33, 0.27, 89.5), (89.42, 0.09, 89.5), (89.36, 0.09, 89.3)),
  'dirichlet': ((88.09, 0.29, 88.4), (88.44, 0.25, 88.4), (88.15, 0.42, 88.6), (88.22, 0.12, 88.1)),
  'labels_1': ((28.39, 17.09, 10.0), (10.00, 0.00, 10.0), (32.65, 6.68, 38.0), (16.86, 9.30, 11.1)),
  'labels_2': ((78.10, 2.51, 81.0), (33.80, 41.22, 10.0), (78.05, 0.99, 78.8), (71.67, 2.34, 70.5)),
  'labels_3': ((82.43, 1.52, 83.2), (80.32, 5.03, 84.2), (82.99, 0.48, 82.5), (81.97, 1.34, 83.2)),
}
# What each method and partition changes in the experiment.
_METHODS = {
  'fedavg': ('algorithm.name=fedavg',),
  'scaffold': ('algorithm.name=scaffold',),
  'fedprox': ('algorithm.name=fedprox', 'algorithm.options={mu=0.01}'),
  'fednova': ('algorithm.name=fednova',),
}
_SETTINGS = {
  # The baseline permutes with `rng.choice`, whose draw is another.
  'iid': ('data.partition=iid', 'data.options={by_choice=true}'),
  'dirichlet': ('data.partition=dirichlet', 'data.alpha=0.5'),
  **{
    f'labels_{k}': ('data.partition=labels_per_client', f'data.labels_per_client={k}')
    for k in (1, 2, 3)
  },
}
_SAYS = (
  "published: mean ± deviation of its seeds, as reproduced by Flower's baseline; FedProx with mu "
  'tuned over {0.001, 0.01, 0.1, 1}, here mu = 0.01',
)
TABLE = Published(
  name='niid_bench',
  title='NIID-Bench, Fashion-MNIST: 10 clients, 10 local epochs',
  config='niid_bench',
  methods=_METHODS,
  settings=_SETTINGS,
  setting='partition',
  numbers={
    (method, setting): Number(*number)
    for setting, numbers in _ROWS.items()
    for method, number in zip(_METHODS, numbers, strict=True)
  },
  seeds=(42,),
  notes={('fedprox', setting): 'published: tuned' for setting in _SETTINGS},
  says=_SAYS,
  sources=('li2022federated',),
)
