"""Partitions list for list as Flower's, recorded from flwr-datasets 0.6.1 (NumPy 2.4.6).

`scripts/record_partitions.py` has recorded them. Where flwr-datasets is there, it is asked anew.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from fedjax_mem.data import partition

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'record_partitions.py'
spec = importlib.util.spec_from_file_location('record_partitions', SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
RECORDED = json.loads(script.OUT.read_text())['cases']


def ours(case):
  labels, seed = script.labels_of(case), case.get('seed', 42)
  parts = partition(case['ours'], labels, case['num_clients'], seed=seed, **case['options'])
  return [x.tolist() for x in np.split(parts.index, parts.offsets[1:-1])]


@pytest.mark.parametrize(('case', 'wanted'), [*zip(script.CASES, RECORDED, strict=True)])
def test_lists_are_those_of_flower(case, wanted):
  assert script.recorded(case, ours(case)) == wanted
  if importlib.util.find_spec('flwr_datasets') is not None:
    assert script.recorded(case, script.flowers(case)) == wanted


def niid_bench_iid(total, num_clients, seed):
  chosen = np.random.default_rng(seed).choice(total, total, replace=False)
  return [chosen[x].tolist() for x in np.array_split(np.arange(total), num_clients)]


def niid_bench_labels(labels, num_clients, count, seed):
  """The rule of Flower's baseline, in the order of its draws: labels first, then the shuffles."""
  rng, number = np.random.default_rng(seed), len(set(labels.tolist()))
  contains = []
  for client in range(num_clients):
    mine = [client % number]
    while len(mine) < count:
      label = int(rng.choice(number, 1)[0])
      mine += [label] * (label not in mine)
    contains.append(mine)
  held = [[] for _ in range(num_clients)]
  for label in range(number):
    rows = np.where(labels == label)[0]
    rng.shuffle(rows)
    holders = [k for k in range(num_clients) if label in contains[k]]
    for k, part in zip(holders, np.array_split(rows, max(len(holders), 1)), strict=False):
      held[k] += part.tolist()
  return held


def test_partitions_of_seed_42_are_those_of_niid_bench():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 600))
  split = lambda parts: [x.tolist() for x in np.split(parts.index, parts.offsets[1:-1])]
  iid = partition('iid', labels, 10, seed=42, by_choice=True)
  assert split(iid) == niid_bench_iid(6000, 10, 42)
  for count in (1, 2, 3):
    got = partition('labels_per_client', labels, 10, seed=42, labels_per_client=count)
    assert list(map(sorted, split(got))) == list(
      map(sorted, niid_bench_labels(labels, 10, count, 42))
    )
