"""What noise needs of the other layers: their order, the weights, and how the cohort is drawn.

All checks raise `IncompatibleStages`, which names the layer that adds noise, the layer that breaks
its claim, and the remedy.
"""

from typing import Any

from fedjax_mem.core import (
  Bounds,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Masks,
  Noises,
  Prepares,
  Round,
  Withholds,
)


def check(layers: Round) -> None:
  """Raises for a combination in which the noise would not give the privacy that is accounted.

  Args:
    layers: of the round, one of which weighs.

  Raises:
    IncompatibleStages: two layers that do not go together.
  """
  noisy = layers.having(Noises)
  names = [layer.name for layer, _, _ in noisy]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise IncompatibleStages(f'{twice!r} must add noise on one of its sides, got two.')
  _check_together([(layer, noise) for layer, _, noise in noisy])
  for layer, side, noise in noisy:
    share = side == 'client' and noise.trust == 'central'
    _check_place(layers, layer, side, noise)
    _check_carried(layer, side, noise, share)
    _check_selection(layers, layer, noise, share)
    _check_weights(layers, layer, noise)
    if noise.unit == 'example':
      _check_tasks(layers, layer)
    if share:
      _check_share(layers, layer)


def _check_carried(layer: Layer, side: str, noise: Noises, share: bool) -> None:
  """Raises where noise in shares is accounted as noise drawn at once, or the other way round."""
  if noise.mechanism.carried != share:
    raise IncompatibleStages(
      f'the {side} side of {layer.name!r} adds {noise.trust} noise, and its mechanism says that '
      f'clients {"bring" if noise.mechanism.carried else "do not bring"} it in shares: shares are '
      'central noise on the client side.'
    )
  least, withholds = noise.mechanism.carriers, layer.sides[side].fact(Withholds)
  if least is not None and (withholds is None or withholds.least < least):
    raise IncompatibleStages(
      f'the noise of {layer.name!r} is accounted for {least} shares, and its {side} side does not '
      f'withhold the sum where fewer clients arrive: state Withholds({least}).'
    )


def _check_tasks(layers: Round, layer: Layer) -> None:
  """Raises where a layer before noise by example may make several examples depend on one."""
  for x, _, prepares in layers.having(Prepares):
    if x is not layer and not prepares.by_example:
      raise IncompatibleStages(
        f'{layer.name!r} covers one example in training, and {x.name!r} before it does not state '
        f'that it treats each example by itself: state Prepares(by_example=True) if so, or remove '
        f'{x.name!r}.'
      )


def _check_place(layers: Round, layer: Layer, side: str, noise: Noises) -> None:
  """Raises for noise by client that is not on messages, or noise by example that is.

  Local noise is added by the client itself, so it cannot be on a server side.
  """
  if noise.trust == 'local' and side == 'server':
    raise IncompatibleStages(
      f'the server side of {layer.name!r} adds noise that it calls local: a client adds its own: '
      'put it on the client side, or call it central.'
    )
  messages = layer in layers.after(layers.algorithm)
  if (noise.unit == 'client') != messages or (noise.unit == 'example' and side != 'client'):
    where = 'must stand after' if noise.unit == 'client' else 'must be inside of, or before,'
    raise IncompatibleStages(
      f'the {side} side of {layer.name!r} adds noise by {noise.unit}: it {where} the training of '
      f'{layers.algorithm.name!r}.'
    )


def _check_share(layers: Round, layer: Layer) -> None:
  """Raises unless only masks, and at least one, follow a layer that adds a share of the noise."""
  later = [x for x in layers.after(layer) if set(x.sides) - {'select'}]
  for x in later:
    if x.fact(Masks) is None:
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and works on what holds a share of the noise: '
        'put it before the clip, or remove it.'
      )
  if not later:
    raise IncompatibleStages(
      f'{layer.name!r} adds a share of noise, which protects nothing but the sum: put a mask right '
      'after it.'
    )


def _check_together(noisy: list[tuple[Layer, Noises]]) -> None:
  """Raises where two mechanisms protect the same unit: their joint cost is not accounted."""
  first: dict[tuple[str, str], Layer] = {}
  for layer, noise in noisy:
    other = first.setdefault((noise.trust, noise.unit), layer)
    if other is not layer:
      raise IncompatibleStages(
        f'{other.name!r} and {layer.name!r} both add {noise.trust} noise by {noise.unit}, and what '
        'they amount to together is not stated: remove one of them.'
      )


def _check_selection(layers: Round, layer: Layer, noise: Noises, share: bool) -> None:
  """Raises where selection depends on data, or breaks the `min_sep` that the noise assumes."""
  drawn = False
  for x in layers.selecting:
    drawn = drawn or x is layers.drawing
    # The server's noise hides whether a client arrives; noise that the client adds does not.
    _check_looks(layers, layer, x, drawn, noise.trust == 'central' and not share)
  wanted, kept = noise.mechanism.min_sep, layers.draws.min_sep
  if noise.unit == 'client' and wanted > kept:
    raise IncompatibleStages(
      f'{layer.name!r} assumes {wanted} rounds between two participations of a client, and '
      f'{layers.drawing.name!r} keeps {kept}: use a sampler that keeps them, such as '
      f'min_separation or round_robin with smaller cohorts, or noise that assumes {kept}.'
    )


def _check_looks(layers: Round, noisy: Layer, chooser: Layer, drawn: bool, by_server: bool) -> None:
  """Raises where a select side looks at what it must not, or changes the law of the draw.

  Args:
    layers: of the round.
    noisy: the layer that adds noise.
    chooser: the layer with the select side.
    drawn: whether it draws, or comes after the draw.
    by_server: whether the server adds the noise to the sum.
  """
  stage: Any = chooser.select
  looks, draws = stage.fact(Looks), stage.fact(Draws)
  # After the draw, a client that does not arrive sends, in effect, zeros: within the bound that
  # noise on the sum covers.
  after = drawn and draws is None
  allowed = ('nothing', 'own data') if after and by_server else ('nothing',)
  if looks is None or looks.at not in allowed:
    why = 'does not state what it looks at' if looks is None else f'looks at {looks.at}'
    raise IncompatibleStages(
      f'{noisy.name!r} claims privacy, and {chooser.name!r} selects clients and {why}: use a layer '
      'that does not look at data, such as poisson or uniform.'
    )
  if chooser.client is not None or chooser.cohort is not None:
    raise IncompatibleStages(
      f'{noisy.name!r} claims privacy, and {chooser.name!r} selects clients by what they report: '
      'use a sampler that does not look at data, such as poisson or uniform.'
    )
  if by_server and chooser.server is not None:
    raise IncompatibleStages(
      f'{noisy.name!r} covers who is in the cohort, and the server side of {chooser.name!r} shares '
      f'a state with its select side, which sees that: remove one of the two sides.'
    )
  if not drawn and layers.draws.scheme != 'poisson':
    raise IncompatibleStages(
      f'{chooser.name!r} comes before the draw and changes its probabilities, by which '
      f'{noisy.name!r} is accounted: put it after the draw, or draw by poisson.'
    )


def _check_weights(layers: Round, layer: Layer, noise: Noises) -> None:
  """Raises where weights or the divisor would reveal what the noise has to hide."""
  weighing, weighs = layers.weighing, layers.weighs
  alike = noise.unit == 'example' or noise.trust == 'local'
  if alike and not weighs.alike:
    raise IncompatibleStages(
      f'{layer.name!r} adds noise to what a client sends, and {weighing.name!r} weighs it by what '
      'is private: weigh all alike, by equal.'
    )
  if weighing.client.fact(Bounds) is None:  # type: ignore[union-attr]
    raise IncompatibleStages(
      f'{layer.name!r} adds noise, and the weights of {weighing.name!r} are private and have no '
      'public cap: weigh by equal or capped.'
    )
  if noise.unit == 'example':
    return
  if weighing in layers.after(layer):
    raise IncompatibleStages(
      f'{layer.name!r} must come after {weighing.name!r}: its clip must cover the weight, and its '
      'noise must be added before the division.'
    )
  if weighs.divisor is None and noise.trust == 'central':
    raise IncompatibleStages(
      f'{layer.name!r} adds noise to a sum, and {weighing.name!r} divides it by the weights that '
      'arrived, which each client changes: give it a fixed divisor, the expected cohort '
      f'({layers.draws.expected:g}).'
    )
