"""What does a round of each work cost, by XLA's count? Operations and bytes, beside the works.

    python -m benchmarks.costs [--work W1 ...] [--write]

Counted (`cost_analysis`) on the program that a GPU or a TPU gets, before it is optimised: nothing
is run or compiled, and no accelerator is needed. XLA counts what is in a loop once; here it counts
as often as the loop runs. `gflop` is to be compared with `formula`, that of `works.Work.gflop`.
`gb` are the bytes that all operations read and write if each goes through memory: a compiler that
fuses them moves far fewer. `--write` keeps the figures in `costs.json`.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.extend import core

from benchmarks import stand_ins, works

FILE = pathlib.Path(__file__).with_name('costs.json')
Program = core.ClosedJaxpr


class Cost(NamedTuple):
  """Floating-point operations, and bytes read and written."""

  operations: float
  bytes: float

  def plus(self, other: 'Cost', times: float) -> 'Cost':
    """Returns the sum of this and `times` the other."""
    return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


def total(program: Program, steps: int) -> Cost:
  """Returns the cost of a program in which each loop runs as often as it does.

  Args:
    program: of one round, or a part of it.
    steps: how often a loop of matrix products runs whose length is known at run time only: the one
      over local steps. Other loops of that kind count once.
  """
  return _counted(program, steps)[1]


def _counted(program: Program, steps: int) -> tuple[Cost, Cost]:
  """Returns the cost of a program in which each loop runs once, XLA's, and what `total` returns."""
  run = jax.jit(core.jaxpr_as_fun(program))
  like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
  found = run.trace(*like).lower(lowering_platforms=('cpu',)).cost_analysis()
  once = whole = Cost(found.get('flops', 0.0), found.get('bytes accessed', 0.0))
  for body, trips in _loops(program.jaxpr):
    if trips is None:
      trips = steps if _multiplies(body.jaxpr) else 1
    body_once, body_whole = _counted(body, steps)
    whole = whole.plus(body_whole, trips).plus(body_once, -1)
  return once, whole


def _loops(jaxpr: core.Jaxpr) -> Iterator[tuple[Program, int | None]]:
  """Yields the body of each outermost loop, and how often it runs; None: known at run time."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'scan':
      yield equation.params['jaxpr'], equation.params['length']
    elif equation.primitive.name == 'while':
      yield equation.params['body_jaxpr'], None
    else:
      for inner in core.jaxprs_in_params(equation.params):
        yield from _loops(inner)


def _multiplies(jaxpr: core.Jaxpr) -> bool:
  """Returns whether a program has a matrix product or a convolution outside of its loops."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name in ('dot_general', 'conv_general_dilated'):
      return True
    inner = () if name in ('scan', 'while') else core.jaxprs_in_params(equation.params)
    if any(map(_multiplies, inner)):
      return True
  return False


def of(work: works.Work, traced: jax.stages.Traced) -> dict[str, float]:
  """Returns the figures of a work, in 10**9 operations and bytes a round.

  Args:
    work: the work.
    traced: its program, from `stand_ins.traced`.
  """
  ((round, _),) = _loops(traced.jaxpr.jaxpr)  # the loop over rounds
  # The steps of DP-SGD are a loop of known length; the rows of one fit one pass of the inner loop.
  cost = total(round, 1 if work.dp_sgd else -(-work.examples // work.batch_size))
  figures = {'gflop': cost.operations / 1e9, 'gb': cost.bytes / 1e9, 'formula': work.gflop}
  return {name: float(f'{x:.5g}') for name, x in figures.items()}


def main() -> None:
  """Counts the works and prints their figures."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--work', nargs='+', choices=list(works.WORKS), default=list(works.WORKS))
  parser.add_argument('--write', action='store_true', help=f'into {FILE.name}')
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  kept = json.loads(FILE.read_text()) if FILE.exists() else {}
  for name in args.work:
    work = works.WORKS[name]
    kept[name] = of(work, stand_ins.traced(work, 'gpu'))
    print(json.dumps({'work': name, **kept[name]}), flush=True)
  if args.write:
    ordered = {name: kept[name] for name in works.WORKS if name in kept}
    FILE.write_text(json.dumps(ordered, indent=2) + '\n')


if __name__ == '__main__':
  main()
