"""What a plan refuses so that bytes are what they are said to be: codecs in the wrong company.

A layer that encodes says so by an attribute `encodes` of its client half, the name of its method.
Where its code adds, the server decodes the sum, and a mask may cover it; where it does not, what is
summed is what the client has decoded itself, and nothing may change it on the way.
"""

from fedjax_mem.core import IncompatibleStages, Layer


def encodes(layer: Layer) -> str | None:
  """Returns the method by which a layer encodes messages, or None if it does not."""
  return getattr(layer.client.apply, 'encodes', None)


def check(layers: tuple[Layer, ...]) -> None:
  """Raises `IncompatibleStages` for layers that a codec does not go with, naming both.

  Args:
    layers: the onion, its order checked.
  """
  for i, layer in enumerate(layers):
    if encodes(layer) is None:
      continue
    for earlier in layers[:i]:
      if earlier.traits.payload == 'integer':
        raise IncompatibleStages(
          f'{layer.name!r} encodes floats, and {earlier.name!r} before it leaves integers: put '
          f'{layer.name!r} before {earlier.name!r}.'
        )
    for later in layers[i + 1 :]:
      _check_after(layer, later)


def _check_after(layer: Layer, later: Layer) -> None:
  """Raises for a layer after a codec that would change what is on the wire."""
  if encodes(later) is not None:
    raise IncompatibleStages(
      f'{layer.name!r} and {later.name!r} both encode the update, and only one message is sent: '
      'use chain(first, second).'
    )
  if layer.traits.adds:
    return
  if later.traits.payload == 'integer':
    raise IncompatibleStages(
      f'the code of {layer.name!r} does not add, and {later.name!r} sums integers of every '
      f'coordinate, so that nothing of the code would be left: use a codec that adds, such as '
      f'random_k, or remove {layer.name!r}.'
    )
  mechanism = later.traits.mechanism
  if mechanism is not None and mechanism.trust == 'local':
    raise IncompatibleStages(
      f'{later.name!r} adds noise to what {layer.name!r} has encoded, so that nothing of the code '
      f'would be left: put {layer.name!r} after {later.name!r}.'
    )
