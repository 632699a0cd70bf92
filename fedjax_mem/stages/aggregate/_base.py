"""What the robust rules share: from weighted messages to plain rows [C, D], and back.

A robust rule is defined for updates of equal weight. It comes after the weighing, so a client's row
is its update divided by its weight. The result of the rule is written into every row, times the
row's weight, and the weights do not change. So the sum and the division that follow give exactly
that result. A client gets no row if it is padding, has not arrived, has weight 0 or sends a value
that is not finite.

The round is skipped if fewer clients are left than the rule needs, or if the rule removes them all.
Then every weight is 0, so the server changes neither its parameters nor its optimizer state.
Metrics: `skipped`, 1 for such a round, and `rows`, the number of rows that the rule received.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  IncompatibleStages,
  Layer,
  Message,
  Metrics,
  Rule,
  Stage,
  Tree,
  tree,
  validate,
)

# (ctx, rows [C, D], zeros where they do not count, which rows count [C], weights [C])
# -> (result [D], or new rows [C, D]; metrics)
Compute = Callable[[Context, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Ruling:
  """The cohort side of a rule: stack -> stack.

  Attributes:
    compute: the rule on rows.
    least: number of rows that it needs.
  """

  compute: Compute
  least: int

  def __call__(self, ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (stack, state, metrics), as every side of a layer."""
    x, on, weights = flat(ctx, stack)
    count = on.sum(dtype=jnp.int32)
    holds = count >= self.least
    value, metrics = self.compute(ctx, x, on, weights)
    holds &= metrics.get('left', count) > 0
    stack = put(stack, value, jnp.where(holds, weights, 0), on & holds)
    skipped = jnp.where(holds, jnp.int32(0), jnp.int32(1))
    return stack, state, {'skipped': skipped, 'rows': count, **metrics}


def flat(ctx: Context, stack: Message) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (rows [C, D], which count [C], weights [C]): updates over weights, in float32."""
  on = ctx.cohort.arrived & (stack.weight > 0) & tree.finite(stack.update, 1)
  weights = jnp.where(on, stack.weight, 0)
  by = 1 / jnp.where(on, weights, 1)
  return tree.keep(on, tree.ravel(stack.update, 1) * by[:, None]), on, weights


def put(stack: Message, value: jax.Array, weights: jax.Array, on: jax.Array) -> Message:
  """Returns the stack with `value`, [D] or rows [C, D], times the weights [C] in rows that are on.

  Args:
    stack: the stack that the rule received; gives shapes and dtypes.
    value: float32.
    weights: [C] float32, those of the new stack; 0 where a row is not on.
    on: [C] booleans.
  """
  value = value if value.ndim == 2 else value[None]
  rows = tree.keep(on, value * weights[:, None])
  return stack._replace(update=tree.unravel(rows, stack.update, 1), weight=weights)


def rule(
  name: str,
  compute: Compute,
  fact: Rule | None = None,
  server: Stage | None = None,
) -> Layer:
  """Returns the layer of a robust rule, which checks its input when the round is planned.

  >>> def largest(ctx, x, on, weights):
  ...   return jnp.where(on[:, None], x, -jnp.inf).max(0), {}
  >>> fm.apply([[1.0, 5.0], [3.0, 2.0]], rule('largest', largest), weights=[1, 9]).update.tolist()
  [3.0, 5.0]

  Args:
    name: name of the layer.
    compute: (ctx, rows x [C, D], which rows count [C], weights [C]) -> (result [D] or new rows
      [C, D], metrics). A row is a client's update, already divided by its weight; rows that do not
      count are zeros.
    fact: what the rule needs and promises; None: any number of rows, as many out as in.
    server: its server side; None: it passes the sum on.
  """
  fact = Rule() if fact is None else fact
  return Layer(name, cohort=side(name, Ruling(compute, fact.least), fact), server=server)


def side(
  name: str, apply: Callable[[Context, Message, Tree], tuple[Message, Tree, Metrics]], fact: Rule
) -> Stage:
  """Returns the cohort side of a rule without a state, which checks its input."""

  def init(ctx: Context) -> Tree:
    check_floats(name, ctx.spec)
    return ()

  return Stage(apply, init, (fact,))


def check_floats(name: str, like: Message) -> None:
  """Raises `IncompatibleStages` unless a message consists of a float update and nothing else."""
  other = tree.not_floats(like.update)
  if other:
    raise IncompatibleStages(
      f'{name!r} works on updates of floats, and what it receives holds {other[0]}: put it before '
      'the layer that encodes, or remove one of the two.'
    )
  if like.aux:
    raise IncompatibleStages(
      f'{name!r} protects the update only, and {sorted(like.aux)!r} is summed beside it as it '
      f'comes: use an algorithm that sends its update alone, or remove {name!r}.'
    )


def check_byzantine(byzantine: int) -> int:
  """Returns f, the number of byzantine clients that a rule withstands, an integer >= 0."""
  return validate.integer(at_least=0, byzantine=byzantine)
