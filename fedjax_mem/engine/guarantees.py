"""What a plan refuses so that a claim of privacy holds.

`check` looks at the layers alone: their order, weights, samplers. `check_bounds` and
`check_released` look at what only shapes show: what one client can change where noise is added, and
sums that leave beside the noise. All raise `IncompatibleStages`, naming the layer that adds noise,
the layer that breaks its promise, and the remedy.

What one client can change in the sum is composed along the path of a message (`Round.bounds`): out
over the client and cohort sides, and back over the server sides that are listed after the noise,
which work on the sum before it. A side that states no `Bounds` leaves it unknown, and noise on what
is unknown is refused.
"""

from itertools import pairwise
from typing import Any

import jax

from fedjax_mem.core import (
  IN_ROUND,
  Bound,
  Bounds,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Mechanism,
  Message,
  Noises,
  Round,
  known,
  tree,
)

Tree = Any
_ROUNDING = 1 + 1e-6


def check(layers: Round) -> None:
  """Raises for a combination in which the noise would not give what it is accounted for.

  Args:
    layers: of the round, one of which weighs.

  Raises:
    IncompatibleStages: a promise that does not hold.
  """
  noisy = layers.having(Noises)
  names = [layer.name for layer, _, _ in noisy]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise IncompatibleStages(f'{twice!r} must add noise on one of its sides, got two.')
  _check_together([(layer, noise.mechanism) for layer, _, noise in noisy])
  for layer, _, noise in noisy:
    _check_selection(layers, layer, noise.mechanism)
    _check_weights(layers, layer, noise.mechanism)
    if noise.mechanism.carried:
      _check_share(layers, layer)


def _check_share(layers: Round, layer: Layer) -> None:
  """Raises where anything but a mask works on messages that hold a share of the noise."""
  for x in layers.after(layer):
    if set(x.sides) - {'select'} and not x.traits.masks:
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and works on what holds a share of the noise: '
        'put it before the clip, or remove it.'
      )


def check_bounds(layers: Round, specs: dict[str, Tree]) -> None:
  """Raises where the norm that noise is scaled to is unknown, or larger than it is drawn for.

  Args:
    layers: of the round.
    specs: for each layer, the shapes that its client side receives.
  """
  for layer, side, noise in layers.having(Noises):
    if layer.name not in specs or layer is layers.algorithm:
      continue  # noise inside of training, or before it, bounds what it noises itself
    mechanism = noise.mechanism
    here = layers.bound(layer, side, specs)
    wanted = ('rows',) if mechanism.trust == 'local' else ('rows', _norm(mechanism))
    for what in wanted:
      if not known(getattr(here, what)):
        raise IncompatibleStages(_unknown(layers, layer, side, what, specs))
    _check_rows(layers, layer, side, here, specs)
    if mechanism.trust == 'central':
      _check_fixed(layers, layer, side, mechanism, specs)


def _norm(mechanism: Mechanism) -> str:
  """Returns which norm the noise needs to be bounded."""
  return 'l1' if mechanism.name == 'laplace' else 'l2'


def _steps(
  layers: Round, layer: Layer, side: str, what: str, specs: dict[str, Tree]
) -> list[tuple[Layer, str, Any, Any]]:
  """Returns (layer, side, bound of what enters, of what leaves) up to a side, the last first."""
  places = layers.bounds(specs)
  stop = next(i for i, (x, s, _) in enumerate(places) if (x.name, s) == (layer.name, side))
  return [
    (x, s, getattr(before, what), getattr(after, what))
    for (x, s, before), (_, _, after) in reversed(list(pairwise(places[: stop + 1])))
  ]


def _unknown(layers: Round, layer: Layer, side: str, what: str, specs: dict[str, Tree]) -> str:
  """Returns who leaves unknown what noise is scaled to, why, and what to do."""
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
    'remove it.'
  )


def _check_rows(
  layers: Round, layer: Layer, side: str, here: Bound, specs: dict[str, Tree]
) -> None:
  """Raises where a client changes the messages of others, and the noise is not scaled to that.

  Noise of a client's own covers one message; so does what a layer sums beside the update, and that
  is what a bound that is known only in the round comes from.
  """
  if here.rows == 1 or (side == 'server' and here.l2 is not IN_ROUND):
    return
  steps = _steps(layers, layer, side, 'rows', specs)
  name = next((x.name for x, _, old, new in steps if old != new), layers.algorithm.name)
  raise IncompatibleStages(
    f'{layer.name!r} covers what one client changes in one message, and with {name!r} it may '
    f'change the messages of others: remove {name!r}.'
  )


def _check_fixed(
  layers: Round, layer: Layer, side: str, mechanism: Mechanism, specs: dict[str, Tree]
) -> None:
  """Raises where noise that is drawn for one bound meets another.

  Integer noise is drawn for the bound on its grid; noise that is correlated over rounds for one
  that is the same in all of them.
  """
  here = getattr(layers.bound(layer, side, specs), _norm(mechanism))
  if here is IN_ROUND and (mechanism.l2 is not None or mechanism.name in ('tree', 'matrix')):
    raise IncompatibleStages(
      f'{layer.name!r} draws noise for a bound that is the same in every round, and what reaches '
      'it is bounded by a number known only in the round: clip to a fixed norm.'
    )
  if mechanism.l2 is None or here <= mechanism.l2 * _ROUNDING:
    return
  steps = _steps(layers, layer, side, 'l2', specs)
  name = next((x.name for x, _, old, new in steps if new > old), steps[-1][0].name)
  raise IncompatibleStages(
    f'{name!r} enlarges the bound of {layer.name!r} to {here:.6g} on its grid, and its noise is '
    f'drawn for {mechanism.l2:.6g}: put {name!r} before {layer.name!r}, or remove it.'
  )


def _check_together(noisy: list[tuple[Layer, Mechanism]]) -> None:
  """Raises where two mechanisms protect the same thing and nobody can say what they amount to."""
  groups: dict[tuple[str, str], list[tuple[Layer, Mechanism]]] = {}
  for layer, mechanism in noisy:
    groups.setdefault((mechanism.trust, mechanism.unit), []).append((layer, mechanism))
  for (trust, unit), group in groups.items():
    if len(group) > 1:
      (first, one), (second, two) = group[:2]
      raise IncompatibleStages(
        f'{first.name!r} ({one.name}) and {second.name!r} ({two.name}) both add {trust} noise by '
        f'{unit}, and what they amount to together is not stated: remove one of them.'
      )


def _check_selection(layers: Round, layer: Layer, mechanism: Mechanism) -> None:
  """Raises where who is selected depends on data, or more often than correlated noise assumes."""
  drawn = False
  for x in layers.selecting:
    drawn = drawn or x is layers.drawing
    _check_looks(layers, layer, x, drawn, mechanism)
  name, kept = layers.drawing.name, layers.draws.min_sep
  wanted = mechanism.restart if mechanism.name == 'tree' else mechanism.separation
  if mechanism.name in ('tree', 'matrix') and (wanted or 1) > kept:
    option = 'restart' if mechanism.name == 'tree' else 'separation'
    raise IncompatibleStages(
      f'{layer.name!r} assumes {wanted} rounds between two participations of a client, and '
      f'{name!r} keeps {kept}: use a sampler that keeps them, such as min_separation or '
      f'round_robin with smaller cohorts, or set {option} = {kept}.'
    )


def _check_looks(
  layers: Round, noisy: Layer, chooser: Layer, drawn: bool, mechanism: Mechanism
) -> None:
  """Raises where a select side looks at what it must not, or changes the law of the draw.

  Args:
    layers: of the round.
    noisy: the layer that makes the claim.
    chooser: the layer that selects.
    drawn: whether it draws, or comes after the draw.
    mechanism: of the noise.
  """
  stage: Any = chooser.select
  looks, draws = stage.fact(Looks), stage.fact(Draws)
  # After the draw, that a client does not arrive is a message of zeros, which is within the bound
  # of noise on the sum. A client's own noise does not hide whether it arrives.
  after = drawn and draws is None
  by_server = mechanism.trust == 'central' and not mechanism.carried
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
  if not drawn and layers.draws.scheme != 'poisson':
    raise IncompatibleStages(
      f'{chooser.name!r} comes before the draw and changes its probabilities, by which '
      f'{noisy.name!r} is accounted: put it after the draw, or draw by poisson.'
    )


def _check_weights(layers: Round, layer: Layer, mechanism: Mechanism) -> None:
  """Raises where weights or the divisor would tell what the noise is to hide."""
  weighing: Any = layers.weighing
  traits = weighing.traits
  allowed = ('equal',) if mechanism.unit == 'example' else ('equal', 'capped')
  if traits.weighs not in allowed:
    raise IncompatibleStages(
      f'{layer.name!r} adds noise, and {weighing.name!r} weighs clients by {traits.weighs!r}, '
      f'which is private{"" if mechanism.unit == "example" else " and unbounded"}: weigh by '
      f'{" or ".join(map(repr, allowed))}.'
    )
  if mechanism.unit == 'example':
    return
  if weighing in layers.after(layer):
    raise IncompatibleStages(
      f'{layer.name!r} must come after {weighing.name!r}: its clip must cover the weight, and its '
      'noise must be added before the division.'
    )
  if traits.divisor is None and (mechanism.trust == 'central' or traits.weighs != 'equal'):
    expected = layers.draws.expected
    raise IncompatibleStages(
      f'{layer.name!r} adds noise to a sum, and {weighing.name!r} divides it by the weights that '
      'arrived, which each client changes: give it a fixed divisor, the expected cohort '
      f'({expected:g}).'
    )


def check_released(
  layers: Round, specs: dict[str, Tree], sent: Message, servers: dict[str, Tree]
) -> None:
  """Raises `IncompatibleStages` if something is released beside the noise.

  Args:
    layers: of the round.
    specs: for each layer after the algorithm, the shapes of what its client side receives.
    sent: shapes of what leaves the last client side.
    servers: for each layer, the shapes of its server state.
  """
  for layer, _, noise in layers.having(Noises):
    if layer.name not in specs:
      continue
    if not noise.mechanism.carried:
      _check_entering(layers, layer, specs)
    _check_beside(layers, layer, specs, sent, servers)


def _check_entering(layers: Round, layer: Layer, specs: dict[str, Tree]) -> None:
  """Raises where what enters the clip is not made of floats."""
  whole = tree.not_floats(specs[layer.name].update)
  if whole:
    raise IncompatibleStages(
      f'{layer.name!r} clips arrays of floats, and {layers.before(layer)[-1].name!r} before it '
      f'leaves {whole[0]}: put {layer.name!r} before the layer that encodes.'
    )


def _sums(layers: Round, specs: dict[str, Tree], sent: Message) -> list[tuple[Layer, list[str]]]:
  """Returns the layers that sum something beside the update without noise, and what."""
  found: list[tuple[Layer, list[str]]] = []
  known: set[str] = set()
  start = layers.place(layers.algorithm)
  for i, x in enumerate(layers[start:], start):
    leaves = specs[layers[i + 1].name] if i + 1 < len(layers) else sent
    extra = sorted(set(leaves.aux) - known)
    known = set(leaves.aux)
    noise = x.fact(Noises)
    covered = noise is not None and noise.mechanism.trust == 'central'
    if extra and not covered:
      found.append((x, extra))
  return found


def _check_beside(
  layers: Round,
  layer: Layer,
  specs: dict[str, Tree],
  sent: Message,
  servers: dict[str, Tree],
) -> None:
  """Raises where something is summed, or kept on the server, that the noise never covers."""
  after = [x.name for x in layers.after(layer)]
  noise: Any = layer.fact(Noises)
  central = noise.mechanism.trust == 'central'
  for x, extra in _sums(layers, specs, sent):
    if x.name not in after:
      raise IncompatibleStages(
        f'{layer.name!r} adds noise to the update only, and {x.name!r} sums {extra!r} beside it '
        'without noise: use a layer that sends its update alone.'
      )
    if central:
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and sums {extra!r} without noise: remove it.'
      )
  for x in layers.after(layer):
    noised = x.server is None or x.server.fact(Noises) is not None
    if central and not noised and jax.tree.leaves(servers[x.name]):
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and keeps a state on the server that is computed '
        f'before the noise is added: put {x.name!r} before {layer.name!r}.'
      )
