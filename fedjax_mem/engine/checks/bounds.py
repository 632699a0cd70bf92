"""Bounds (clip norms): noise needs a known bound on what one client can change where it is added.

The bound is composed along the path of a message (`Round.bounds`): over the client and cohort sides
to the sum, and over the server sides that work on the sum before the noise, which are those of the
layers listed after it. A side that states no `Bounds` leaves the bound unknown, and noise that
would be scaled to an unknown bound is refused.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  IN_ROUND,
  Bound,
  Bounds,
  IncompatibleStages,
  Integers,
  Layer,
  Mechanism,
  Message,
  Noises,
  Round,
  Tree,
  known,
)


def check(layers: Round, specs: dict[str, Tree], sent: Message) -> None:
  """Raises where the bound that noise is scaled to is unknown, or not one that it can be drawn for.

  Args:
    layers: of the round.
    specs: for each layer, the shapes that its client side receives.
    sent: shapes of what leaves the last client side.
  """
  for layer, side, noise in layers.having(Noises):
    if noise.unit == 'example':
      continue  # it is inside of training or before it, and bounds what it works on itself
    here = layers.bound(layer, side, specs)
    for what in ('rows', *noise.mechanism.norms):
      if not known(here._asdict()[what]):
        raise IncompatibleStages(_unknown(layers, layer, side, what, specs))
    after = layers.after(layer)
    leaves = specs[after[0].name] if after else sent
    # What the layer itself adds to the sum beside the update.
    beside = set(leaves.aux) - set(specs[layer.name].aux)
    _check_rows(layers, layer, side, here, specs, bool(beside))
    _check_grid(layers, layer, noise)
    _check_precise(layers, layer, sent)
    _check_fixed(layer, noise.mechanism, here, specs[layer.name])


def _steps(
  layers: Round, layer: Layer, side: str, what: str, specs: dict[str, Tree]
) -> list[tuple[Layer, str, Any, Any]]:
  """Returns (layer, side, bound of what enters, of what leaves) of all sides before a given one.

  The last side comes first; the bounds are the field `what`, a norm or the rows.
  """
  places = list(layers.bounds(specs))
  stop = next(i for i, (x, s, _) in enumerate(places) if (x.name, s) == (layer.name, side))
  return [
    (x, s, before._asdict()[what], after._asdict()[what])
    for (x, s, before), (_, _, after) in reversed(list(pairwise(places[: stop + 1])))
  ]


def _unknown(layers: Round, layer: Layer, side: str, what: str, specs: dict[str, Tree]) -> str:
  """Returns a message: which side leaves the bound unknown, why, and what to do."""
  breaks = next(
    (
      (x, s)
      for x, s, old, new in _steps(layers, layer, side, what, specs)
      if known(old) and not known(new)
    ),
    None,
  )
  if breaks is None:
    return (
      f'{layer.name!r} adds noise, and no layer up to it bounds the {what.upper()} norm of an '
      f'update, the algorithm {layers.algorithm.name!r} least of all: clip first.'
    )
  x, s = breaks
  fact = x.sides[s].fact(Bounds)
  why = 'it states no bound' if fact is None else fact.why or 'it says so'
  if what == 'rows':
    return (
      f'{layer.name!r} bounds what one client changes, and the cohort side of {x.name!r} sees all '
      f'updates at once, so that one client may change the messages of others ({why}): remove '
      f'{x.name!r}, or state its Bounds.'
    )
  return (
    f'the {s} side of {x.name!r} leaves the {what.upper()} norm of what one client changes unknown '
    f'({why}), and the noise of {layer.name!r} is scaled to it: put {x.name!r} before the clip, or '
    'remove it, or state its Bounds.'
  )


def _check_rows(
  layers: Round, layer: Layer, side: str, here: Bound, specs: dict[str, Tree], beside: bool
) -> None:
  """Raises where a client can change other clients' messages, and the noise covers one message.

  Noise that a client adds to its own message covers that message only. The same holds for noise on
  what the layer sums `beside` the update, which has no composed bound.
  """
  if here.rows == 1 or (side == 'server' and not beside):
    return
  steps = _steps(layers, layer, side, 'rows', specs)
  name = next((x.name for x, _, old, new in steps if old != new), layers.algorithm.name)
  raise IncompatibleStages(
    f'{layer.name!r} covers what one client changes in one message, and with {name!r} it may '
    f'change the messages of others: remove {name!r}.'
  )


def _check_grid(layers: Round, layer: Layer, noise: Noises) -> None:
  """Raises where noise for integers is added to floats, or the other way round.

  The layer's own client side states whether the sum is one of integers. Only central noise is
  checked: a client that noises its own integers may turn them into floats again.
  """
  whole = layer.client is not None and layer.client.fact(Integers) is not None
  if noise.trust == 'central' and noise.mechanism.integers != whole:
    kind = 'integers' if noise.mechanism.integers else 'floats'
    raise IncompatibleStages(
      f'{layer.name!r} adds noise for {kind}, and what its client side leaves are '
      f'{"integers" if whole else "not stated to be integers"}: use another mechanism, or state '
      'Integers.'
    )


def _check_precise(layers: Round, layer: Layer, sent: Message) -> None:
  """Raises where the rounding of the sum is not bounded: where it is not one of float32."""
  if not layers.compensated:
    return
  dtypes = [x.dtype for x in jax.tree.leaves(sent.update)]
  coarse = [x for x in dtypes if jnp.issubdtype(x, jnp.floating) and x != jnp.float32]
  if coarse:
    last = next(x for x in reversed(layers) if set(x.sides) & {'client', 'cohort'})
    raise IncompatibleStages(
      f'{layer.name!r} covers the rounding of a sum of float32, and {last.name!r} leaves '
      f'{coarse[0]} to be summed: leave float32.'
    )


def _check_fixed(layer: Layer, mechanism: Mechanism, here: Bound, spec: Any) -> None:
  """Raises where noise needs the same bound in every round, and the bound changes."""
  remembers = jax.tree.leaves(jax.eval_shape(lambda: mechanism.init(spec.update)))
  if remembers and not mechanism.correlated:
    raise IncompatibleStages(
      f'the noise of {layer.name!r} keeps a state: {type(mechanism).__name__} must say that it is '
      'correlated.'
    )
  moving = any(here._asdict()[what] is IN_ROUND for what in mechanism.norms)
  if moving and (mechanism.integers or mechanism.correlated):
    raise IncompatibleStages(
      f'{layer.name!r} draws noise for a bound that is the same in every round, and what reaches '
      'it is bounded by a number known only in the round: clip to a fixed norm.'
    )
  if not moving:
    mechanism.check(here, spec.update)
