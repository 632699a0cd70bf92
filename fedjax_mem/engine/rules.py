"""Robust rules and attacks in a round: what a plan refuses, and coordinates among devices.

A cohort side that is a robust rule states `Rule`, one that stands for clients that lie `Attacks`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import (
  Attacks,
  Context,
  IncompatibleStages,
  Layer,
  Message,
  Round,
  Rule,
  Stage,
  tree,
)
from fedjax_mem.engine.mesh import AXIS

Tree = Any


def check(layers: Round) -> None:
  """Raises `IncompatibleStages` for a rule or an attack in the wrong place, naming both layers.

  Args:
    layers: of the round, their order checked.
  """
  rows = layers.draws.expected
  for layer in layers:
    rule, attacks = layer.fact(Rule), layer.fact(Attacks)
    if rule is None and attacks is None:
      continue
    _check_visible(layer, layers)
    if rule is None:
      continue
    _check_divisor(layer, layers.before(layer))
    if rows < rule.least:
      raise IncompatibleStages(
        f'{layer.name!r} needs {rule.why}, and {layers.drawing.name!r} selects about {rows:g} '
        f'clients{_fewer(layers.before(layer))}: select more, or withstand fewer.'
      )
    rows = rule.rows(int(rows))


def _fewer(before: tuple[Layer, ...]) -> str:
  """Returns words for the layers that leave fewer rows than enter."""
  rules = [(x.name, x.fact(Rule)) for x in before]
  names = [name for name, rule in rules if rule is not None and rule.rows(2) < 2]
  return f', fewer after {names[-1]!r}' if names else ''


def _check_visible(layer: Layer, layers: Round) -> None:
  """Raises where updates are hidden, or are integers, when a layer has to see them."""
  place = layers.place(layer)
  for i, x in enumerate(layers):
    hidden = x.traits.masks and layer.fact(Rule) is not None  # an attack may come before the mask
    if hidden or (x.traits.payload == 'integer' and i < place):
      raise IncompatibleStages(
        f"{layer.name!r} looks at each client's own update, and {x.name!r} leaves integers that "
        f'are seen only as a sum: remove one of the two.'
      )


def _check_divisor(layer: Layer, before: tuple[Layer, ...]) -> None:
  """Raises where the division would change what the rule has found."""
  for x in before:
    if x.traits.divisor is not None:
      raise IncompatibleStages(
        f'{layer.name!r} gives updates whose mean is the result, and {x.name!r} divides their sum '
        f'by {x.traits.divisor:g}, whoever has arrived: weigh without a fixed divisor.'
      )


def divided_side(layer: Layer, mesh: Mesh) -> Stage:
  """Returns the cohort side of a layer, its coordinates divided among the devices.

  Only if there are several, and the layer says that coordinates do not depend on each other:
  messages are laid out client by client before, and have to be laid out part by part.

  Args:
    layer: one with a cohort side.
    mesh: the devices.
  """
  stage: Any = layer.cohort
  rule = stage.fact(Rule)
  if mesh.size == 1 or rule is None or not rule.by_coordinate:
    return stage
  apply: Callable[[Context, Message, Tree], tuple] = stage.apply

  def divided(ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, dict[str, Any]]:
    flat = tree.ravel(stack.update, 1)
    flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % mesh.size)))
    # Whether a row counts must not depend on the part of it that a device sees.
    fine = jnp.isfinite(flat).all(1)
    weight = jnp.where(fine, stack.weight, 0)

    def part(whole: tuple, flat: jax.Array) -> tuple:
      known, weight, state = whole
      new, state, metrics = apply(known._replace(spec=ctx.spec), Message(flat, weight, {}), state)
      return new.update, (new.weight, state, metrics)

    split, everywhere = PartitionSpec(None, AXIS), PartitionSpec()
    flat, (weight, state, metrics) = jax.shard_map(
      part,
      mesh=mesh,
      in_specs=(everywhere, split),
      out_specs=(split, everywhere),
      check_vma=False,
    )((ctx._replace(spec=None), weight, state), flat)
    update = tree.unravel(flat, stack.update, 1)
    return stack._replace(update=update, weight=weight), state, metrics

  return stage._replace(apply=divided)
