"""FedAvg and FedAvgM on clients whose labels are the more unequal the smaller the concentration.

Reference: Hsu, Qi, Brown (2019), Measuring the effects of non-identical data distribution for
federated visual classification, arXiv 1909.06335, figure 4: curves, no numbers.
"""

from fedjax_mem.studies.cells import Published

_CONCENTRATIONS = ('10', '1', '0.5', '0.1', '0.01')
TABLE = Published(
  name='fedavgm',
  title='FedAvg and FedAvgM by concentration: Fashion-MNIST, 100 clients, 5 a round',
  config='fedavgm',
  methods={
    'fedavg': ('server.optimizer=sgd',),
    'fedavgm': ('server.optimizer=fedavgm', 'server.momentum=0.9'),
  },
  settings={x: (f'data.alpha={x}',) for x in _CONCENTRATIONS},
  setting='concentration',
  numbers={},
  seeds=(0,),
  notes={},
  says=(
    '200 of the published 1,000 rounds, and Fashion-MNIST with LeNet in place of CIFAR-10; a '
    'figure was published, no numbers: what can be compared is the order of the methods',
  ),
  sources=('hsu2019measuring',),
)
