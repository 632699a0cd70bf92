"""What a plan refuses so that bytes are what they are said to be: codecs in the wrong company.

A layer that encodes says so by an attribute `encodes` of its client side, the name of its method.
Where its code adds, the server decodes the sum, and a mask may cover it; where it does not, what is
summed is what the client has decoded itself, and nothing may change it on the way.

A layer that leaves integers to be summed modulo a power of two states the modulus, and how many
clients there is room for. A layer that masks comes last, on such integers, and nobody looks at
single messages in the name of the server: a cohort side may stand before the weighing, or for
clients that attack.
"""

from fedjax_mem.core import Attacks, IncompatibleStages, Layer, Noises, Round

_WHOLE = 32  # bits of the sum of integers whose layer states no modulus


def encodes(layer: Layer) -> str | None:
  """Returns the method by which a layer encodes messages, or None if it does not."""
  stage = layer.client or layer.cohort
  return getattr(stage.apply, 'encodes', None) if stage is not None else None


def check(layers: Round) -> None:
  """Raises `IncompatibleStages` for layers that a codec does not go with, naming both.

  Args:
    layers: of the round, their order checked.
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
  for i, layer in enumerate(layers):
    if layer.traits.bits is not None:
      _check_room(layers, layer)
    if layer.traits.masks:
      _check_masked(layers, i)


def _check_room(layers: Round, layer: Layer) -> None:
  """Raises where a cohort may have more clients than an integer sum has room for."""
  name = layers.drawing.name
  most, capacity = layer.traits.clients, layers.draws.capacity
  if most is not None and capacity > most:
    raise IncompatibleStages(
      f'{layer.name!r} has room for the sum of {most} clients in {layer.traits.bits} bits, and '
      f'{name!r} selects up to {capacity}: give it clients = {capacity}.'
    )


def _check_masked(layers: tuple[Layer, ...], place: int) -> None:
  """Raises where a mask hides nothing, hides what the sum needs, or is looked under."""
  mask = layers[place]
  whole = [x for x in layers[:place] if x.traits.payload == 'integer']
  if not whole:
    raise IncompatibleStages(
      f'{mask.name!r} masks integers, and {layers[place - 1].name!r} before it leaves floats, on '
      'which masks do not cancel: put integers or distributed between them.'
    )
  source = next((x for x in reversed(whole) if x.traits.bits is not None), whole[-1])
  modulus = source.traits.bits or _WHOLE
  if modulus != mask.traits.bits:
    raise IncompatibleStages(
      f'{mask.name!r} masks modulo 2 ** {mask.traits.bits}, and {source.name!r} sums modulo '
      f'2 ** {modulus}: give both the same bits.'
    )
  for later in layers[place + 1 :]:
    if later.client is not None or later.cohort is not None:
      raise IncompatibleStages(
        f'{later.name!r} comes after {mask.name!r} and would work on masks: put {later.name!r} '
        f'before {mask.name!r}.'
      )
  weighing = next(i for i, x in enumerate(layers) if x.traits.weighs is not None)
  for i, x in enumerate(layers):
    if x.cohort is not None and i > weighing and x.cohort.fact(Attacks) is None:
      raise IncompatibleStages(
        f'{x.name!r} looks at single messages, and {mask.name!r} leaves the server nothing but '
        'their sum: remove one of them.'
      )


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
  noise = None if later.client is None else later.client.fact(Noises)
  if noise is not None and noise.mechanism.trust == 'local':
    raise IncompatibleStages(
      f'{later.name!r} adds noise to what {layer.name!r} has encoded, so that nothing of the code '
      f'would be left: put {layer.name!r} after {later.name!r}.'
    )
