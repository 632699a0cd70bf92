"""What the robust rules share: from weighted messages to plain rows [C, D], and back.

A rule is defined for updates that count the same. Messages come after the weighing, so a client's
row is its update over its weight. What is returned makes the sum and the division that follow give
the rule's value: it stands in every row, times the row's weight, and weights stay as they are. A
client that is padding, has not arrived, has weight 0 or sends a value that is not finite is no row.

Where fewer clients are left than the rule needs, or it leaves none, the round is skipped: every
weight is 0, so that the server leaves its parameters and its optimizer as they are. Metrics:
`skipped`, 1 for such a round, and `rows` that the rule has seen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  IncompatibleStages,
  Layer,
  Message,
  Rule,
  Stage,
  tree,
  validate,
)

Tree = Any
# (ctx, rows [C, D] with zeros for those that do not count, which count [C], weights [C])
# -> (value [D], or new rows [C, D]; metrics)
Compute = Callable[..., tuple[jax.Array, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Ruling:
  """The cohort side of a rule: stack -> stack.

  Attributes:
    compute: the rule on rows.
    least: rows that it needs.
  """

  compute: Compute
  least: int

  def __call__(self, ctx: Context, stack: Message, state: Tree):
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
    stack: as it came, for shapes and dtypes.
    value: float32.
    weights: [C] float32, those of the new stack; 0 where a row is not on.
    on: [C] booleans.
  """
  value = value if value.ndim == 2 else value[None]
  rows = tree.keep(on, value * weights[:, None])
  return stack._replace(update=tree.unravel(rows, stack.update, 1), weight=weights)


def layer(
  name: str,
  compute: Compute,
  rule: Rule | None = None,
  server: Stage | None = None,
) -> Layer:
  """Returns the layer of a rule, which checks what it works on when the round is planned.

  Args:
    name: of the layer.
    compute: the rule on rows.
    rule: what it needs and promises; None: any number of rows, as many as enter.
    server: its server side; None: it passes the sum on.
  """
  rule = Rule() if rule is None else rule
  return Layer(name, cohort=side(name, Ruling(compute, rule.least), rule), server=server)


def side(name: str, apply: Any, rule: Rule) -> Stage:
  """Returns the cohort side of a rule without a state, which checks what it works on."""

  def init(ctx: Context):
    check_floats(name, ctx.spec)
    return ()

  return Stage(apply, init, (rule,))


def check_floats(name: str, like: Message) -> None:
  """Raises `IncompatibleStages` unless a message is nothing but floats that a rule can see."""
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
  """Returns f, the hostile clients that a rule is to withstand, an integer >= 0."""
  return validate.integer(at_least=0, byzantine=byzantine)
