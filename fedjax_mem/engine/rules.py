"""Robust rules in a round: what a plan refuses, and how coordinates are divided among devices.

A stacked layer that is a robust rule says so by the attributes of its client half's `apply`:
`least`, the clients that it needs; `why`, that condition in words; `rows`, how many rows leave for
how many that enter; `by_coordinate`, whether coordinates do not depend on each other. An attack on
messages has an attribute `attacks`, and `alone`, whether a lie depends on no other client.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Context, IncompatibleStages, Layer, Message, selector, tree
from fedjax_mem.engine.mesh import AXIS

Tree = Any


def is_rule(layer: Layer) -> bool:
  """Returns whether a layer is a robust rule."""
  return layer.stacked and hasattr(layer.client.apply, 'least')


def is_attack(layer: Layer) -> bool:
  """Returns whether a layer is an attack on messages."""
  return layer.stacked and hasattr(layer.client.apply, 'attacks')


def check(layers: tuple[Layer, ...]) -> None:
  """Raises `IncompatibleStages` for a rule or an attack in the wrong place, naming both layers.

  Args:
    layers: the onion, its order checked.
  """
  chooser = next(x for x in layers if x.select is not None)
  rows = selector(layers)[1].sampling.expected
  for i, layer in enumerate(layers):
    if not (is_rule(layer) or is_attack(layer)):
      continue
    _check_weights(layer, layers[i + 1 :])
    _check_visible(layer, layers)
    if not is_rule(layer):
      continue
    _check_divisor(layer, layers[:i])
    half: Any = layer.client.apply
    if rows < half.least:
      raise IncompatibleStages(
        f'{layer.name!r} needs {half.why}, and {chooser.name!r} selects about {rows:g} clients'
        f'{_fewer(layers[:i])}: select more, or withstand fewer.'
      )
    rows = half.rows(int(rows))


def _fewer(before: tuple[Layer, ...]) -> str:
  """Returns words for the layers that leave fewer rows than enter."""
  halves: list[tuple[str, Any]] = [(x.name, x.client.apply) for x in before if is_rule(x)]
  names = [name for name, half in halves if half.rows(2) < 2]
  return f', fewer after {names[-1]!r}' if names else ''


def _check_weights(layer: Layer, after: tuple[Layer, ...]) -> None:
  """Raises where messages are weighted only after a layer that takes weights off again."""
  for x in after:
    if x.traits.weighs is not None:
      raise IncompatibleStages(
        f'{layer.name!r} works on weighted messages: it must come after {x.name!r}.'
      )


def _check_visible(layer: Layer, layers: tuple[Layer, ...]) -> None:
  """Raises where updates are hidden, or are integers, when a layer has to see them."""
  place = layers.index(layer)
  for i, x in enumerate(layers):
    hidden = x.traits.masks and is_rule(layer)  # an attack may come before the mask
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


def stacked_half(layer: Layer, mesh: Mesh) -> Callable[[Context, Message, Tree], tuple]:
  """Returns the client half of a stacked layer, its coordinates divided among the devices.

  Only if there are several, and the layer says that coordinates do not depend on each other:
  messages are laid out client by client before, and have to be laid out part by part.

  Args:
    layer: a stacked layer.
    mesh: the devices.
  """
  apply = layer.client.apply
  if mesh.size == 1 or not getattr(apply, 'by_coordinate', False):
    return apply

  def divided(ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, dict[str, Any]]:
    flat = tree.ravel(stack.payload, 1)
    flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % mesh.size)))
    # Whether a row counts must not depend on the part of it that a device sees.
    fine = jnp.isfinite(flat).all(1)
    weight = jnp.where(fine, stack.weight, 0)

    def part(whole: tuple, flat: jax.Array) -> tuple:
      known, weight, state = whole
      new, state, metrics = apply(known._replace(like=ctx.like), Message(flat, weight, {}), state)
      return new.payload, (new.weight, state, metrics)

    split, everywhere = PartitionSpec(None, AXIS), PartitionSpec()
    flat, (weight, state, metrics) = jax.shard_map(
      part,
      mesh=mesh,
      in_specs=(everywhere, split),
      out_specs=(split, everywhere),
      check_vma=False,
    )((ctx._replace(like=None), weight, state), flat)
    payload = tree.unravel(flat, stack.payload, 1)
    return stack._replace(payload=payload, weight=weight), state, metrics

  return divided
