"""Records the partitions of `flwr-datasets`, which ours are compared with.

    pip install flwr-datasets==0.6.1
    python scripts/record_partitions.py   # writes tests/oracle/flower_partitions.json

It needs nothing of this package. `tests/oracle/test_flower_partitions.py` reads the file, and does
the same anew where `flwr-datasets` is installed.
"""

import hashlib
import json
import pathlib
import warnings
from typing import Any

import numpy as np

OUT = pathlib.Path(__file__).parents[1] / 'tests' / 'oracle' / 'flower_partitions.json'
# Each case: labels are those of `numpy.random.default_rng(labels_seed)` among `among`, `total` of
# them; `ours` is the name of the partition here and its options, `seed` that of both.
CASES: tuple[dict[str, Any], ...] = (
  {'ours': 'flower_dirichlet', 'num_clients': 10, 'options': {'alpha': 0.5, 'min_examples': 5}},
  {
    'ours': 'flower_dirichlet',
    'num_clients': 10,
    'options': {'alpha': 0.5, 'min_examples': 5, 'self_balancing': True},
  },
  {  # drawn several times before each client has enough
    'ours': 'flower_dirichlet',
    'num_clients': 6,
    'seed': 4,
    'options': {'alpha': 0.2, 'min_examples': 12, 'self_balancing': True},
  },
  {  # labels that are absent draw nothing
    'ours': 'flower_dirichlet',
    'num_clients': 4,
    'among': [1, 2, 6],
    'options': {'alpha': [0.3, 1.0, 3.0, 9.0], 'min_examples': 1},
  },
  {
    'ours': 'flower_dirichlet',
    'num_clients': 100,
    'total': 60_000,
    'options': {'alpha': 0.5, 'min_examples': 10, 'self_balancing': True},
  },
  {'ours': 'inner_dirichlet', 'num_clients': 6, 'options': {'alpha': 0.5, 'sizes': [50] * 6}},
  {  # labels run out, and some examples are left
    'ours': 'inner_dirichlet',
    'num_clients': 5,
    'seed': 1,
    'options': {'alpha': [2.0, 1.0, 0.5, 1.0, 2.0], 'sizes': [150, 80, 50, 10, 1]},
  },
  {
    'ours': 'inner_dirichlet',
    'num_clients': 4,
    'total': 8_000,
    'options': {'alpha': 1.0, 'sizes': [2_000] * 4},
  },
  {'ours': 'sizes', 'num_clients': 7, 'options': {'law': 'linear'}},
  {'ours': 'sizes', 'num_clients': 7, 'total': 1_003, 'options': {'law': 'square'}},
  {'ours': 'sizes', 'num_clients': 5, 'total': 1_003, 'options': {'law': 'exponential'}},
)
_LISTED = 1_000  # examples; of larger cases the file holds a digest


def labels_of(case: dict[str, Any]) -> np.ndarray:
  """Returns the labels of a case, [T] int64."""
  rng = np.random.default_rng(case.get('labels_seed', 7))
  return rng.choice(case.get('among', range(5)), case.get('total', 300))


def flowers(case: dict[str, Any]) -> list[list[int]]:
  """Returns the clients' rows in a case, as `flwr-datasets` gives them."""
  import datasets
  from flwr_datasets import partitioner as flower

  options, seed = dict(case['options']), case.get('seed', 42)
  if case['ours'] == 'sizes':
    kind = f'{options.pop("law").capitalize()}Partitioner'
    made = getattr(flower, kind)(num_partitions=case['num_clients'])
  elif case['ours'] == 'flower_dirichlet':
    least = options.pop('min_examples')
    made = flower.DirichletPartitioner(
      case['num_clients'], 'label', min_partition_size=least, seed=seed, **options
    )
  else:
    made = flower.InnerDirichletPartitioner(options['sizes'], 'label', options['alpha'], seed=seed)
  labels = labels_of(case)
  rows = {'label': labels.tolist(), 'row': list(range(len(labels)))}
  made.dataset = datasets.Dataset.from_dict(rows)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of draws that are repeated, and of examples that are left
    return [list(made.load_partition(i)['row']) for i in range(case['num_clients'])]


def recorded(case: dict[str, Any], lists: list[list[int]]) -> Any:
  """Returns what the file holds of a case: sizes, the lists, or the sizes and a digest of them."""
  sizes = [len(x) for x in lists]
  if case['ours'] == 'sizes':
    return {'sizes': sizes}
  if sum(sizes) <= _LISTED:
    return {'lists': lists}
  text = json.dumps(lists, separators=(',', ':')).encode()
  return {'sizes': sizes, 'sha256': hashlib.sha256(text).hexdigest()}


def main() -> None:
  """Writes the file."""
  from importlib.metadata import version

  cases = [recorded(case, flowers(case)) for case in CASES]
  lines = ',\n'.join(json.dumps(case, separators=(',', ':')) for case in cases)
  OUT.write_text(f'{{"flwr-datasets":"{version("flwr-datasets")}","cases":[\n{lines}\n]}}\n')


if __name__ == '__main__':
  main()
