"""How far is the estimated memory of a plan from what the compiler says?

python -m benchmarks.plans [W1 W2:vmap R1:2 …] [--devices 1]

A work, and after a colon how its cohort is laid out: vmap, loop, or clients at a time. A JSON line
each: bytes of arguments, and of all that is beside them, by the estimate and by the compiler. The
examples are zeros, so that no data are needed.
"""

import argparse
import json
from typing import Any

import jax
import numpy as np

from benchmarks import works
from fedjax_mem import models
from fedjax_mem.core import keys, shape_of
from fedjax_mem.engine import Execution, outline

# The plan's constant is set by the first five.
SET_BY = ('W1', 'W2', 'W3', 'W4', 'R1')
_SHAPES = {'fashion_mnist': (28, 28), 'fashion_mnist_32x32x3': (32, 32, 3)}


def outlined(name: str, segment: int = 16) -> outline.Outline:
  """Returns a work on shapes, `segment` rounds a segment.

  Args:
    name: of the work; after a colon how its cohort is laid out.
    segment: rounds.
  """
  key, _, how = name.partition(':')
  work = works.WORKS[key]
  data = works.federate(work, *_zeros(work))
  model = models.build(work.model, data.input_shape, data.num_classes)
  population = data.population()
  return outline.outlined(
    works.layers(work, model),
    jax.eval_shape(model.init, keys.like()),
    population,
    execution=execution(how),
    max_rounds=segment,
    shape=shape_of(population),
    transforms=(data.preprocess,),
  )


def execution(how: str) -> Execution:
  """Returns the execution of '' (the table's), 'vmap', 'loop' or a number of clients."""
  if how.isdigit():
    return Execution(mode='chunk', chunk=int(how))
  return Execution(mode=how or 'auto')


def _zeros(work: works.Work) -> tuple[np.ndarray, ...]:
  number = work.num_clients * work.examples
  kind, _, length = work.data.partition('_')
  if kind == 'tokens':
    x, y = (np.zeros((number, int(length)), t) for t in (np.uint8, np.int32))
    return x, y, x[:10], y[:10]
  # The first has all of its examples, whoever holds them.
  number = 60_000 if work.data == 'fashion_mnist' else number
  x, y = np.zeros((number, *_SHAPES[work.data]), np.uint8), np.zeros(number, np.int32)
  return x, y, x[:10], y[:10]


def compared(name: str) -> dict[str, Any]:
  """Returns the record of a work: bytes on a device by the estimate and by the compiler."""
  made = outlined(name)
  guess, said = outline.peak(made), outline.compiled(made)
  return {
    'work': name,
    'devices': made.setting.layout.devices,
    'arguments': guess.arguments,
    'arguments_compiled': said.arguments,
    'beside': guess.beside,
    'beside_compiled': said.beside,
    'ratio': round(guess.total / said.total, 3),
    'ratio_beside': round(guess.beside / said.beside, 3),
  }


def main() -> None:
  """Prints the records."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('works', nargs='*', default=list(works.WORKS))
  parser.add_argument('--devices', type=int, default=1)
  given = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', given.devices)
  for name in given.works:
    print(json.dumps(compared(name)), flush=True)


if __name__ == '__main__':
  main()
