"""Layers that a codec does not go with: with them, other bytes would be sent than are counted.

A side that encodes states `Encodes`. If the codes add, the server decodes their sum, and a mask may
cover them. If they do not, each client's code is decoded before the sum, and no later layer may
change it. A side that states nothing may do anything to a message, so it is refused in a round with
a codec.
"""

from fedjax_mem.core import Encodes, IncompatibleStages, Integers, Layer, Noises, Round


def check(layers: Round) -> None:
  """Raises `IncompatibleStages` for layers that a codec does not go with, naming both.

  Args:
    layers: of the round, their order checked.
  """
  for layer, _, encodes in layers.having(Encodes):
    for x, side in layers.silent:
      raise IncompatibleStages(
        f'{layer.name!r} encodes updates, and the {side} side of {x.name!r} does not state what it '
        f'does to them: state it, such as by Bounds, or remove one of the two.'
      )
    for earlier in layers.before(layer):
      if earlier.fact(Integers) is not None:
        raise IncompatibleStages(
          f'{layer.name!r} encodes floats, and {earlier.name!r} before it leaves integers: put '
          f'{layer.name!r} before {earlier.name!r}.'
        )
    for later in layers.after(layer):
      _check_after(layer, encodes, later)


def _check_after(layer: Layer, encodes: Encodes, later: Layer) -> None:
  """Raises for a layer after a codec that would change what is sent."""
  if later.fact(Encodes) is not None:
    raise IncompatibleStages(
      f'{layer.name!r} and {later.name!r} both encode the update, and only one message is sent: '
      'use chain(first, second).'
    )
  if encodes.codec.adds:
    return
  if later.fact(Integers) is not None:
    raise IncompatibleStages(
      f'the code of {layer.name!r} does not add, and {later.name!r} sums integers of every '
      f'coordinate, so that nothing of the code would be left: use a codec that adds, such as '
      f'random_k, or remove {layer.name!r}.'
    )
  noise = None if later.client is None else later.client.fact(Noises)
  if noise is not None and noise.trust == 'local':
    raise IncompatibleStages(
      f'{later.name!r} adds noise to what {layer.name!r} has encoded, so that nothing of the code '
      f'would be left: put {layer.name!r} after {later.name!r}.'
    )
