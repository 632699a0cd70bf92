"""The works in fedjax_mem as of this commit, served as the peers serve them.

    python -m benchmarks.serve FOLDER [--execution loop|vmap|chunk:K] [--devices D] [--no-pool]

`benchmarks.rounds --against-commit` starts this module of two commits, each in a process and with a
package of its own, and has them run the same work in turn. What FOLDER holds, the lines, and the
options above are frozen: see `benchmarks/peers/__init__.py`. How a commit answers is its own.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

import fedjax_mem
from benchmarks import works
from fedjax_mem import data as datasets
from fedjax_mem import models
from fedjax_mem.config.sections import EvaluationSection
from fedjax_mem.core import State
from fedjax_mem.engine import Execution, Simulation, evaluator, simulate
from fedjax_mem.runner import devices

SEGMENT = 64  # rounds of one dispatch at most


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds how a work is executed."""
  parser.add_argument('--execution', default='auto')
  parser.add_argument('--devices', default='auto', help='a number, or auto: one a core')
  parser.add_argument('--no-pool', action='store_true', help='no sum over all examples at once')


def prepare(args: argparse.Namespace) -> Execution:
  """Settles the devices of this process, and returns the execution of `add_options`."""
  count = args.devices if args.devices == 'auto' else int(args.devices)
  devices.prepare(count)
  return execution(args.execution, count, not args.no_pool)


def execution(text: str, count: int | str, pool: bool) -> Execution:
  """Returns the execution that 'auto', 'loop', 'vmap' or 'chunk:K' names."""
  mode, _, chunk = text.partition(':')
  return Execution(mode=mode, chunk=int(chunk) if chunk else None, devices=count, pool=pool)


def load(folder: pathlib.Path) -> tuple[works.Work, datasets.FederatedData]:
  """Returns the work of a folder and its data, in the hands of the clients of `works.load`."""
  fields: dict[str, Any] = json.loads((folder / 'work.json').read_text())
  fields |= {name: tuple(x) for name, x in fields.items() if isinstance(x, list)}
  work = works.Work(**fields)
  arrays = (np.load(folder / f'{name}.npy') for name in ('x', 'y', 'test_x', 'test_y'))
  return work, works.federate(work, *arrays)


def build(
  work: works.Work, data: datasets.FederatedData, how: Execution
) -> tuple[Simulation, models.Model, Any]:
  """Returns (simulation, model, initial parameters) of a work on its data."""
  model = models.build(work.model, data.input_shape, data.num_classes)
  params = model.init(jax.random.key(0))
  sim = simulate(
    works.layers(work, model),
    params,
    data.population(),
    execution=how,
    max_rounds=SEGMENT,
    transforms=(data.preprocess,),
  )
  return sim, model, params


def score(
  sim: Simulation, model: models.Model, data: datasets.FederatedData, params: Any
) -> dict[str, float]:
  """Returns the accuracy and the loss of parameters on the test set."""
  each = lambda p, batch: model.metrics(p, data.preprocess(batch))
  size = min(EvaluationSection.batch_size, len(data.test['y']))  # as a run evaluates
  test = evaluator(each, data.test, batch_size=size, mesh=sim.setting.layout.mesh)
  found = test(params)
  return {name: found[name] for name in ('accuracy', 'loss')}


def timed(sim: Simulation, state: State, rounds: int) -> tuple[State, float]:
  """Returns the state after one fenced dispatch of up to `SEGMENT` rounds, and seconds a round."""
  began = time.perf_counter()
  state, _ = sim.run(state, rounds)
  jax.block_until_ready(state)
  return state, (time.perf_counter() - began) / rounds


def main() -> None:
  """Serves rounds on standard input and output."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  add_options(parser)
  args = parser.parse_args()
  how = prepare(args)
  work, data = load(args.folder)
  sim, model, params = build(work, data, how)
  state = jax.block_until_ready(sim.compile(sim.init(params)))
  versions = {
    'fedjax_mem': fedjax_mem.__version__,
    'jax': jax.__version__,
    'root': str(pathlib.Path(fedjax_mem.__file__).resolve().parents[1]),
  }
  print(json.dumps(versions), flush=True)
  for line in sys.stdin:
    if line.strip() == 'accuracy':
      print(json.dumps(score(sim, model, data, state.params)), flush=True)
      continue
    seconds: list[float] = []
    while (left := int(line) - len(seconds)) > 0:
      rounds = min(left, SEGMENT)
      state, each = timed(sim, state, rounds)
      seconds += [each] * rounds
    print(json.dumps({'seconds': seconds}), flush=True)


if __name__ == '__main__':
  main()
