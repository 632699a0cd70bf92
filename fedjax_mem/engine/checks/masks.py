"""Masks, and the integers that they cover.

A side that leaves integers states `Integers`: the modulus of their sum, and for how many clients it
has room. A mask comes last, right after such a side. The server cannot see single messages under a
mask, so the only cohort sides are those of byzantine clients (`Attacks`).
"""

from fedjax_mem.core import (
  Attacks,
  IncompatibleStages,
  Integers,
  Layer,
  Masks,
  Round,
)


def check(layers: Round) -> None:
  """Raises where an integer sum may overflow, or where a mask is misplaced or seen through."""
  for layer, _, whole in layers.having(Integers):
    _check_room(layers, layer, whole)
  masked = layers.having(Masks)
  for layer, _, mask in masked:
    _check_covered(layers, layer, mask)
    _check_last(layers, layer)
    _check_unseen(layers, layer)
  _check_choosers(layers)


def _check_room(layers: Round, layer: Layer, whole: Integers) -> None:
  """Raises where a cohort may have more clients than an integer sum has room for."""
  capacity = layers.draws.capacity
  if capacity > whole.clients:
    raise IncompatibleStages(
      f'{layer.name!r} has room for the sum of {whole.clients} clients in {whole.bits} bits, and '
      f'{layers.drawing.name!r} selects up to {capacity}: give it clients = {capacity}, more bits, '
      'or fewer levels.'
    )


def _check_covered(layers: Round, layer: Layer, mask: Masks) -> None:
  """Raises unless integers of the same modulus reach the mask."""
  out = [(x, side) for x, side in layers.path if side != 'server']
  place = [(x.name, side) for x, side in out].index((layer.name, 'client'))
  source, side = out[place - 1]
  whole = source.sides[side].fact(Integers)
  if whole is None:
    raise IncompatibleStages(
      f'{layer.name!r} masks integers, and the {side} side of {source.name!r} right before it does '
      f'not state that it leaves any, and masks do not cancel on floats: put integers or '
      f'distributed between them.'
    )
  if whole.bits != mask.bits:
    raise IncompatibleStages(
      f'{layer.name!r} masks modulo 2 ** {mask.bits}, and {source.name!r} sums modulo '
      f'2 ** {whole.bits}: give both the same bits.'
    )


def _check_last(layers: Round, layer: Layer) -> None:
  """Raises for a layer that would work on masks."""
  for later in layers.after(layer):
    if set(later.sides) - {'select'}:
      raise IncompatibleStages(
        f'{later.name!r} comes after {layer.name!r} and would work on masks: put {later.name!r} '
        f'before {layer.name!r}.'
      )


def _check_unseen(layers: Round, layer: Layer) -> None:
  """Raises for a cohort side that sees single messages, unless it is an attack's."""
  for x in layers:
    if x.cohort is not None and x.cohort.fact(Attacks) is None:
      raise IncompatibleStages(
        f'{x.name!r} looks at single messages, and {layer.name!r} leaves the server nothing but '
        'their sum: remove one of them.'
      )


def _check_choosers(layers: Round) -> None:
  """Raises where selection depends on single messages of which only the sum is seen."""
  hidden = [x.name for x, _, _ in (*layers.having(Integers), *layers.having(Masks))]
  for chooser in layers.selecting:
    if chooser.cohort is not None and hidden:
      raise IncompatibleStages(
        f"{chooser.name!r} selects by each client's own update, and {hidden[0]!r} leaves integers "
        'that are seen only as a sum: select by another rule, such as uniform, or remove '
        f'{hidden[0]!r}.'
      )
