"""The rounds of the works as a GPU and a TPU get them, lowered here, with the paths of these.

Nothing is run. What the text says is checked: no call back to the host, no float64, no copy of the
whole population; and what XLA counts in it is what `benchmarks/costs.json` has.
"""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import costs, stand_ins, works

# Groups of the works' convolutions: each client has weights of its own. Of the gradients of single
# examples (D1) some are convolutions of one group.
GROUPS = {'W1': 50, 'W2': 50, 'W4': 10, 'R1': 4, 'D1': 1, 'E1': 50}
TOLERANCE = 0.01  # of a count

# Those that only hand values on.
_HANDS_ON = ('while', 'return', 'case', 'optimization_barrier')
_OPERATION = re.compile(r'"?stablehlo\.(\w+)"?(.*)')


def operations(text):
  """Yields (name, line, shapes and dtypes of the results) of each operation of a program."""
  for line in text.splitlines():
    if found := _OPERATION.search(line):
      name, rest = found.groups()
      results = rest.rpartition('->')[2] if '->' in rest else rest.rpartition(' : ')[2]
      yield (
        name,
        line,
        [
          (tuple(map(int, shape.split('x')[:-1])), shape.split('x')[-1])
          for shape in re.findall(r'tensor<((?:\d+x)*\w+)', results)
        ],
      )


def calls_outside(text):
  """Returns the names of what a program calls that is not XLA's own."""
  return set(re.findall(r'custom_call @?"?([\w.]+)', text)) - {'Sharding', 'sdy'}


def copies(text, rows, row):
  """Returns the operations that copy all `rows` examples of shape `row`, or as much of them."""
  whole, found = (rows, *row), []
  given = f'tensor<{"x".join(map(str, whole))}x'
  for name, line, results in operations(text):
    for shape, _ in results:
      taken = ('gather' in name or 'slice' in name) and given in line
      if name not in _HANDS_ON and (
        shape == whole or (taken and math.prod(shape) >= math.prod(whole))
      ):
        found.append(line.strip())
  return found


@functools.cache
def program(name, platform):
  """Returns (the program traced for a platform, its text when lowered for it)."""
  with jax.numpy_rank_promotion('allow'):  # as users have it
    traced = stand_ins.traced(works.WORKS[name], platform)
  return traced, traced.lower(lowering_platforms=(platform,)).as_text()


def population(traced):
  """Returns the number of examples that a program is given, and the shape of one."""
  x = traced.in_avals[0][1].arrays['x']
  return x.shape[0], x.shape[1:]


@pytest.mark.first(2)
@pytest.mark.parametrize(
  'name, platform',
  [('W1', 'cuda'), ('W3', 'tpu')]
  + [
    (n, p)
    for n in works.WORKS
    for p in ('cuda', 'tpu')
    if (n, p) not in (('W1', 'cuda'), ('W3', 'tpu'))
  ],
)
def test_a_round_stays_on_the_device(name, platform):
  traced, text = program(name, platform)
  assert calls_outside(text) == set()
  assert not re.search(r'\bf64\b|xf64|callback', text)
  rows, row = population(traced)
  assert f'{rows}x' in text and copies(text, rows, row) == []
  groups = set(map(int, re.findall(r'feature_group_count = (\d+)', text)))
  assert bool(groups) == (name in GROUPS)
  assert not [g for g in groups if g % GROUPS[name]]


@pytest.mark.slow
@pytest.mark.parametrize('name', works.WORKS)
def test_the_counts_beside_the_works_are_current(name):
  traced, _ = program(name, 'cuda')
  kept = json.loads(costs.FILE.read_text())[name]
  found = costs.of(works.WORKS[name], traced)
  assert found == pytest.approx(kept, rel=TOLERANCE), 'run: python -m benchmarks.costs --write'


def test_a_loop_counts_as_often_as_it_runs():
  a = jnp.ones((8, 8))  # a product with it: 2 * 8**3 operations

  def program(a, length):
    steps = lambda a: jax.lax.fori_loop(0, length, lambda i, x: x @ a, a)  # length: at run time
    return jax.lax.scan(lambda x, _: (steps(x) @ a, None), a, None, 5)[0]

  traced = jax.jit(program).trace(a, 3)
  found = costs.total(traced.jaxpr, steps=7).operations
  assert found == pytest.approx(5 * (7 + 1) * 2 * 8**3, rel=0.01)


def test_what_must_not_be_in_a_program_would_be_found():
  x = jnp.zeros((40, 3), jnp.uint8)
  rows = jnp.arange(40)
  told = lambda x: jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
  lowered = lambda f, *x: jax.jit(f).lower(*x).as_text()
  assert calls_outside(lowered(told, x)) != set()
  assert copies(lowered(lambda x: x.astype(jnp.float32).sum(), x), 40, (3,))
  assert copies(lowered(lambda x, rows: x[rows].sum(), x, rows), 40, (3,))
  assert not copies(lowered(lambda x, rows: x[rows].sum(), x, rows[:4]), 40, (3,))
