"""Hiding the cohort: under noise on the sum, client and server sides cannot see who is in it.

Central noise hides whether a client is in the cohort at all. A side that looked at the cohort could
make every message, or the noise itself, depend on one client's presence, which no bound on one
message covers. Masks are the exception: they are derived from the cohort, and cancel in the sum.

Under any claim it is also hidden whose update was not finite, or that a client has no examples.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  IncompatibleStages,
  Layer,
  Masks,
  Member,
  Message,
  Noises,
  Round,
  tree,
)


def covering(layers: Round) -> str | None:
  """Returns the name of the layer whose noise on the sum covers who is in the cohort, or None."""
  names = (x.name for x, _, noise in layers.having(Noises) if noise.trust == 'central')
  return next(names, None)


def seen(layers: Round, layer: Layer, ctx: Context) -> Context:
  """Returns the context of a client or server side, without the cohort where noise covers it."""
  cover = covering(layers)
  if cover is None or layer.fact(Masks) is not None:
    return ctx
  return ctx._replace(cohort=_Hidden(layer.name, cover))


def weighed(layers: Round, layer: Layer, value: Any) -> Any:
  """Returns what enters a server side; under noise on the sum its weight is the fixed divisor."""
  hidden = covering(layers) is not None and layer.fact(Masks) is None
  if not hidden or not isinstance(value, Message):
    return value
  return value._replace(weight=jnp.float32(layers.weighs.divisor))


def trained(layers: Round, noised: bool, fine: jax.Array, message: Message) -> Message:
  """Returns a message as it may leave training.

  Under a claim a client of weight 0 sends zeros of full weight, as `kept` says; if training itself
  adds noise, it sends that.

  Args:
    layers: of the round.
    noised: whether training adds noise.
    fine: whether the message is finite.
    message: from the algorithm.
  """
  weighty = message.weight > 0
  if layers.claims and noised:
    message = message._replace(weight=jnp.where(weighty, message.weight, 1))
  elif layers.claims:
    fine = fine & weighty
  return kept(layers, fine, message)


def kept(layers: Round, fine: jax.Array, message: Message) -> Message:
  """Returns the message, or a stack [C, ...], where it is `fine`; else what stands for it.

  That is zeros of weight 0, which take no part. Under a claim of privacy nobody may see who takes
  no part: zeros of full weight, to which noise is added like to any other message.
  """
  if not layers.claims:
    return tree.keep(fine, message)
  full = jnp.where(fine, message.weight, jnp.ones_like(message.weight))
  return tree.keep(fine, message)._replace(weight=full)


def narrowed(drawn: Member, left: Any, number: int, name: str) -> Member:
  """Returns the cohort after a select side that follows the draw: it can only leave clients out.

  Args:
    drawn: the cohort before.
    left: the cohort that the side returned.
    number: N, the id of padding.
    name: of the layer.

  Raises:
    IncompatibleStages: `left` is not a cohort of as many rows.
  """
  check_cohort(left, drawn.id.shape[0], name)
  real = drawn.real & left.real
  ids = jnp.where(real, drawn.id, number)
  chance = jnp.where(real, drawn.chance, jnp.float32(1))
  return Member(ids, real, drawn.arrived & left.arrived & real, chance)


def check_cohort(cohort: Any, rows: int, name: str) -> None:
  """Raises `IncompatibleStages` for anything but a cohort of so many rows."""
  if isinstance(cohort, Member):
    shapes = [jnp.shape(x) for x in cohort]
    if set(shapes) == {(rows,)}:
      return
    got = f'arrays of shapes {shapes!r}'
  else:
    got = repr(cohort)
  raise IncompatibleStages(
    f'the select side of {name!r} must leave a cohort, a Member of arrays [{rows}], got {got}.'
  )


class _Hidden:
  """Stands for the cohort where noise on the sum hides it: any access to it raises."""

  def __init__(self, asks: str, noise: str):
    self._asks, self._noise = asks, noise

  def __getattr__(self, name: str) -> Any:
    """Raises `IncompatibleStages`."""
    raise IncompatibleStages(
      f'{self._asks!r} asks for {name!r} of the cohort, which the noise of {self._noise!r} has to '
      'cover: do without, or state Masks if it cancels in the sum.'
    )
