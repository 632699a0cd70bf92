"""What a plan refuses so that a claim of privacy holds, and what it tells the layers that noise.

`bind` looks at the layers alone: their order, weights, samplers and bounds. `check_released` looks
at what only shapes show: sums that leave beside the noise. Both raise `IncompatibleStages`, naming
the layer that adds noise, the layer that breaks its promise, and the remedy.

The scale of noise on the sum is asked of the onion: a layer states the bound of what leaves its own
client half, and the layers after it say what they make of that bound. A layer after the noise works
on the sum before the noise is added, so its `sensitivity` speaks of its message as decoded: in the
units of what enters it. A server half whose `apply` has a method `told(outside)` is given this
composition, and scales its noise by it; one that has not must not be followed by a layer that
enlarges the bound.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from fedjax_mem.core import (
  Bound,
  IncompatibleStages,
  Layer,
  Message,
  Stage,
  selector,
  sensitivity,
  tree,
)

Tree = Any
_UNSTATED = Layer('').sensitivity
_ROUNDING = 1 + 1e-6


def bind(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
  """Returns the layers, those that add noise told what becomes of their bounds.

  Args:
    layers: the onion, its order checked.

  Raises:
    IncompatibleStages: a combination in which the noise would not give what it is accounted for.
  """
  noisy = [x for x in layers if x.traits.mechanism is not None]
  if not noisy:
    return layers
  _check_together(noisy)
  for layer in noisy:
    _check_selection(layers, layer)
    _check_weights(layers, layer)
    _check_separate(layers, layer)
    if _central(layer):
      _check_bound(layers, layer)
      _check_outside(layers, layer)
  return tuple(_told(layers, x) if x in noisy and _central(x) else x for x in layers)


def check_released(
  layers: tuple[Layer, ...], like: dict[str, Tree], sent: Message, servers: dict[str, Tree]
) -> None:
  """Raises `IncompatibleStages` if something is released beside the noise.

  Args:
    layers: the onion.
    like: for each layer after the algorithm, the shapes of what its client half receives.
    sent: shapes of what leaves the last client half.
    servers: for each layer, the shapes of its server state.
  """
  for layer in layers:
    mechanism = layer.traits.mechanism
    if mechanism is None or layer.name not in like:
      continue
    _check_entering(layers, layer, like)
    _check_beside(layers, layer, like, sent, servers)


def _central(layer: Layer) -> bool:
  return layer.traits.mechanism.trust == 'central'


def _norm(layer: Layer) -> str:
  """Returns which norm the noise of a layer needs to be bounded."""
  return 'l1' if layer.traits.mechanism.name == 'laplace' else 'l2'


def _after(layers: tuple[Layer, ...], layer: Layer) -> tuple[Layer, ...]:
  return layers[[x.name for x in layers].index(layer.name) + 1 :]


def _before(layers: tuple[Layer, ...], layer: Layer) -> tuple[Layer, ...]:
  return layers[: [x.name for x in layers].index(layer.name)]


def _check_together(noisy: list[Layer]) -> None:
  """Raises where two mechanisms protect the same thing and nobody can say what they amount to."""
  groups: dict[tuple[str, str], list[Layer]] = {}
  for x in noisy:
    groups.setdefault((x.traits.mechanism.trust, x.traits.mechanism.unit), []).append(x)
  for (trust, unit), group in groups.items():
    kinds = [x.traits.mechanism.name for x in group]
    composed = trust == 'central' and set(kinds) == {'gaussian'}
    if len(group) > 1 and not composed:
      first, second = group[0], group[1]
      raise IncompatibleStages(
        f'{first.name!r} ({kinds[0]}) and {second.name!r} ({kinds[1]}) both add {trust} noise by '
        f'{unit}, and what they amount to together is not stated: remove one of them.'
      )


def _check_selection(layers: tuple[Layer, ...], layer: Layer) -> None:
  """Raises where who is selected depends on data, or more often than correlated noise assumes."""
  name, sampler = selector(layers)
  chooser = next(x for x in layers if x.name == name)
  if sampler.sampling.scheme == 'data_dependent' or chooser.client != Stage():
    raise IncompatibleStages(
      f'{layer.name!r} claims privacy, and {name!r} selects clients by what they report: use a '
      'sampler that does not look at data, such as poisson or uniform.'
    )
  mechanism, kept = layer.traits.mechanism, sampler.sampling.separation or 1
  wanted = mechanism.restart if mechanism.name == 'tree' else mechanism.separation
  if mechanism.name in ('tree', 'matrix') and (wanted or 1) > kept:
    option = 'restart' if mechanism.name == 'tree' else 'separation'
    raise IncompatibleStages(
      f'{layer.name!r} assumes {wanted} rounds between two participations of a client, and '
      f'{name!r} keeps {kept}: use a sampler that keeps them, such as min_separation or '
      f'round_robin with smaller cohorts, or set {option} = {kept}.'
    )


def _check_weights(layers: tuple[Layer, ...], layer: Layer) -> None:
  """Raises where weights or the divisor would tell what the noise is to hide."""
  weighing = next(x for x in layers if x.traits.weighs is not None)
  mechanism, traits = layer.traits.mechanism, weighing.traits
  allowed = ('equal',) if mechanism.unit == 'example' else ('equal', 'capped')
  if traits.weighs not in allowed:
    raise IncompatibleStages(
      f'{layer.name!r} adds noise, and {weighing.name!r} weighs clients by {traits.weighs!r}, '
      f'which is private{"" if mechanism.unit == "example" else " and unbounded"}: weigh by '
      f'{" or ".join(map(repr, allowed))}.'
    )
  if mechanism.unit == 'example':
    return
  if weighing in _after(layers, layer):
    raise IncompatibleStages(
      f'{layer.name!r} must come after {weighing.name!r}: its clip must cover the weight, and its '
      'noise must be added before the division.'
    )
  if traits.divisor is None and (_central(layer) or traits.weighs != 'equal'):
    expected = selector(layers)[1].sampling.expected
    raise IncompatibleStages(
      f'{layer.name!r} adds noise to a sum, and {weighing.name!r} divides it by the weights that '
      'arrived, which each client changes: give it a fixed divisor, the expected cohort '
      f'({expected:g}).'
    )


def _check_separate(layers: tuple[Layer, ...], layer: Layer) -> None:
  """Raises where one client may change what others send before the noise is added."""
  whole = Bound(1.0, 1.0, 1.0)
  for x in _before(layers, layer):
    unknown = getattr(x.sensitivity(whole), _norm(layer)) is None
    if getattr(x.client.apply, 'alone', False):
      continue  # it sees all updates, and uses of others none
    if x.stacked and (unknown or x.sensitivity is _UNSTATED):
      raise IncompatibleStages(
        f'{layer.name!r} bounds what one client changes, and {x.name!r} before it sees all updates '
        f'at once, so that one client may change the messages of others: remove {x.name!r}, or '
        'state its sensitivity.'
      )


def _check_bound(layers: tuple[Layer, ...], layer: Layer) -> None:
  """Raises where the norm that the noise is scaled to is unknown where the layer stands."""
  if getattr(sensitivity(layers, layer.name), _norm(layer)) is not None:
    return
  bound, known, broken = Bound(), False, None
  for x in (*_before(layers, layer), layer):
    bound = x.sensitivity(bound)
    now = getattr(bound, _norm(layer)) is not None
    broken, known = (x if known and not now else broken), now
  norm = _norm(layer).upper()
  if broken is None:
    raise IncompatibleStages(
      f'{layer.name!r} adds noise, and no layer up to it bounds the {norm} norm of an update, the '
      f'algorithm {next(x.name for x in layers if x.traits.kind == "algorithm")!r} least of all: '
      'clip first.'
    )
  raise IncompatibleStages(
    f'{broken.name!r} between the clip and {layer.name!r} leaves the {norm} norm of an update '
    f'unbounded{_why(broken)}, and the noise of {layer.name!r} is scaled to it: put '
    f'{broken.name!r} before the clip.'
  )


def _check_outside(layers: tuple[Layer, ...], layer: Layer) -> None:
  """Raises where a layer after the noise breaks the bound of what is summed."""
  tells = hasattr(layer.server.apply, 'told')
  bound = start = _probe(layers, layer)
  for x in _after(layers, layer):
    unstated = x.stacked and x.sensitivity is _UNSTATED
    bound = x.sensitivity(bound)
    value = getattr(bound, _norm(layer))
    if unstated or value is None or not math.isfinite(value):
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and leaves the {_norm(layer).upper()} norm of what '
        f'one client changes in the sum unknown{_why(x)}: put {x.name!r} before {layer.name!r}, or '
        'remove it.'
      )
    if not x.traits.adds and x.sensitivity is _UNSTATED:
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and its code does not add, so the sum that the '
        f'noise is added to has no stated bound: put {x.name!r} before {layer.name!r}.'
      )
    if not tells and value > getattr(start, _norm(layer)) * _ROUNDING:
      raise IncompatibleStages(
        f'{x.name!r} enlarges the bound of {layer.name!r}, whose noise is not scaled to it: put '
        f'{x.name!r} before {layer.name!r}, or remove it.'
      )


def _why(layer: Layer) -> str:
  """Returns ' (the reason)' why a layer leaves norms unknown, if its `sensitivity` has one."""
  reason = getattr(layer.sensitivity, 'reason', None)
  return f' ({reason})' if reason else ''


def _probe(layers: tuple[Layer, ...], layer: Layer) -> Bound:
  """Returns the layer's bound, with 1 for what is bounded by a number known only in the round."""
  return Bound(*(1.0 if x == math.inf else x for x in sensitivity(layers, layer.name)))


def _told(layers: tuple[Layer, ...], layer: Layer) -> Layer:
  """Returns the layer whose server half, if it listens, knows what becomes of its bound."""
  tell = getattr(layer.server.apply, 'told', None)
  if tell is None:
    return layer
  return layer._replace(server=layer.server._replace(apply=tell(_outside(_after(layers, layer)))))


def _outside(after: tuple[Layer, ...]) -> Callable[[Bound], Bound]:
  def outside(bound: Bound) -> Bound:
    for x in after:
      bound = x.sensitivity(bound)
    return bound

  return outside


def _check_entering(layers: tuple[Layer, ...], layer: Layer, like: dict[str, Tree]) -> None:
  """Raises where what enters the clip is not made of floats."""
  whole = tree.not_floats(like[layer.name].payload)
  if whole:
    raise IncompatibleStages(
      f'{layer.name!r} clips arrays of floats, and {_before(layers, layer)[-1].name!r} before it '
      f'leaves {whole[0]}: put {layer.name!r} before the layer that encodes.'
    )


def _sums(
  layers: tuple[Layer, ...], like: dict[str, Tree], sent: Message
) -> list[tuple[Layer, list[str]]]:
  """Returns the layers that sum something beside the payload without noise, and what."""
  found: list[tuple[Layer, list[str]]] = []
  known: set[str] = set()
  start = next(i for i, x in enumerate(layers) if x.traits.kind == 'algorithm')
  for i, x in enumerate(layers[start:], start):
    leaves = like[layers[i + 1].name] if i + 1 < len(layers) else sent
    extra = sorted(set(leaves.aux) - known)
    known = set(leaves.aux)
    covered = x.traits.mechanism is not None and _central(x)
    if extra and not covered:
      found.append((x, extra))
  return found


def _check_beside(
  layers: tuple[Layer, ...],
  layer: Layer,
  like: dict[str, Tree],
  sent: Message,
  servers: dict[str, Tree],
) -> None:
  """Raises where something is summed, or kept on the server, that the noise never covers."""
  after = [x.name for x in _after(layers, layer)]
  for x, extra in _sums(layers, like, sent):
    if x.name not in after:
      raise IncompatibleStages(
        f'{layer.name!r} adds noise to the payload only, and {x.name!r} sums {extra!r} beside it '
        'without noise: use a layer that sends its update alone.'
      )
    if _central(layer):
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and sums {extra!r} without noise: remove it.'
      )
  for x in _after(layers, layer):
    unnoised = x.select is None and x.traits.mechanism is None
    if _central(layer) and unnoised and jax.tree.leaves(servers[x.name]):
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and keeps a state on the server that is computed '
        f'before the noise is added: put {x.name!r} before {layer.name!r}.'
      )
