"""FedAvg and FedProx on synthetic(1, 1) where some clients do only part of their work.

FedAvg drops these clients, which is a draw of a smaller cohort: 10, 5 and 1 of 30 clients.

Reference: Li et al. (2020), Federated optimization in heterogeneous networks, arXiv 1812.06127,
figure 1: curves, no numbers. 200 rounds, 20 local epochs, batch 10, learning rate 0.01, mu 1.
"""

from fedjax_mem.studies.cells import Published

_SHARES = {'0_percent': 0.0, '50_percent': 0.5, '90_percent': 0.9}
_COHORT = 10


def _also() -> dict[tuple[str, str], tuple[str, ...]]:
  """Returns what a share of stragglers means for each method."""
  found: dict[tuple[str, str], tuple[str, ...]] = {}
  for name, share in _SHARES.items():
    left = round(_COHORT * (1 - share))
    found['fedavg', name] = (f'selection.cohort_size={left}',)
    for mu in (0, 1):
      options = f'{{mu = {mu}.0, partial_work = {share}}}'
      found[f'fedprox_mu_{mu}', name] = (f'algorithm.options={options}',)
  return found


TABLE = Published(
  name='fedprox_synthetic',
  title='FedProx, synthetic(1, 1): 0, 50 and 90% stragglers',
  config='synthetic_1_1',
  methods={
    'fedavg': (),
    'fedprox_mu_0': ('algorithm.name=fedprox',),
    'fedprox_mu_1': ('algorithm.name=fedprox',),
  },
  settings=dict.fromkeys(_SHARES, ()),
  setting='stragglers',
  numbers={},
  seeds=(0, 1, 2),
  notes={},
  says=(
    'a figure was published, of training losses and accuracies, no numbers; here the test accuracy',
    'fedavg drops stragglers, which is a draw of fewer clients; under fedprox a client is a '
    'straggler with this probability, and makes 1 to 20 of its 20 passes',
  ),
  also=_also(),
  sources=('li2020federated',),
)
