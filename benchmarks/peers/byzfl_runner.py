"""byzfl's rules, asked for one at a time on standard input; run by `benchmarks.robust`.

Needs an environment with `pip install byzfl==0.0.11` (and the PyTorch that it brings). Only its
aggregators are loaded: the package's own `__init__` also imports its training, and with that
torchvision.
"""

import importlib.util
import json
import sys
import time
import types
from typing import Any

import numpy as np
import torch


def load() -> tuple[Any, Any]:
  """Returns byzfl's modules of aggregators and of what comes before them."""
  package = types.ModuleType('byzfl')
  package.__path__ = list(importlib.util.find_spec('byzfl').submodule_search_locations)
  sys.modules['byzfl'] = package
  from byzfl.aggregators import aggregators, preaggregators

  return aggregators, preaggregators


def rule(rules: Any, before: Any, name: str, f: int) -> Any:
  """Returns the rule of that name for f hostile clients, from byzfl's modules."""
  return {
    'mean': lambda: rules.Average(),
    'median': lambda: rules.Median(),
    'trimmed_mean': lambda: rules.TrMean(f=f),
    'krum': lambda: rules.Krum(f=f),
    'multi_krum': lambda: rules.MultiKrum(f=f),
    'geometric_median': lambda: rules.GeometricMedian(nu=0.1, T=3),
    # The center is kept from call to call: a new rule for every call begins at zero, as ours.
    'centered_clipping': lambda: lambda x: rules.CenteredClipping(tau=1.0)(x),
    'nnm': lambda: before.NNM(f=f),
  }[name]()


def main() -> None:
  """Serves requests: one JSON object a line, {rule, clients, size, f, repeats, path}."""
  modules = load()
  print(json.dumps({'torch': torch.__version__, 'threads': torch.get_num_threads()}), flush=True)
  for line in sys.stdin:
    asked = json.loads(line)
    x = torch.from_numpy(np.load(asked['path']))
    call = rule(*modules, asked['rule'], asked['f'])
    value, times = call(x), []
    for _ in range(asked['repeats']):
      began = time.perf_counter()
      call(x)
      times.append(time.perf_counter() - began)
    start = value.reshape(-1)[:64].tolist()
    print(json.dumps({'seconds': times, 'start': start}), flush=True)


if __name__ == '__main__':
  main()
