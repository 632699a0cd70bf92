"""Privacy settings that follow from a configuration: cohort capacity, calibrated noise."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fedjax_mem.account import calibrate, poisson
from fedjax_mem.config import registry
from fedjax_mem.config.load import Config
from fedjax_mem.core import (
  Bound,
  Draws,
  IncompatibleStages,
  Layer,
  Mechanism,
  Noises,
  Round,
)

_UNBOUNDED = 10.0  # epsilon that a cohort's capacity is computed for without a target_epsilon
_WANTED = 'noise_multiplier'
_PROBE = 1e-3  # small: a stage may refuse multipliers above some limit
_MARGIN = 1 + 1e-6  # ends the iteration soon where the bounds hardly depend on the noise


def capacity(config: Config, num_clients: int) -> int | None:
  """Returns the capacity (rows) of a Poisson cohort of a private run, or None without privacy.

  It is so large that overflows in the whole run cost at most a hundredth of delta.
  """
  if config.privacy.delta is None:
    return None
  budget = config.privacy.target_epsilon or _UNBOUNDED
  size = config.selection.cohort_size
  return poisson.capacity(num_clients, size, config.rounds, config.privacy.delta, budget)


def unsaid(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments that an experiment gives to a stage, without those its options set."""
  return {name: value for name, value in given.items() if name not in options}


def settled(config: Config, chooser: Layer, given: Mapping[str, Any] | None = None) -> Config:
  """Returns the experiment with missing noise multipliers set to what its budget asks for.

  A stage that takes no multiplier, or has one given, stays as it is.

  Args:
    config: the experiment; `privacy.target_epsilon` and `privacy.delta` are the budget.
    chooser: the layer that draws the cohort.
    given: arguments that the experiment gives to stages that take them.

  Raises:
    ValueError: no noise multiplier and no budget, or noise that cannot be calibrated.
    IncompatibleStages: no accountant has an event for the sampler and the noise.
  """
  stages = []
  for number, stage in enumerate(config.stages):
    key = f'stages[{number}]'
    make = registry.factory(f'{key}.use', stage.use, registry.LAYERS, registry.STAGE)
    if _WANTED not in stage.options and _WANTED in inspect.signature(make).parameters:
      known = unsaid(given or {}, stage.options)
      remade = functools.partial(registry.call, key, make, stage.options, **known)
      multiplier = _calibrated(config, key, remade, chooser)
      stage = dataclasses.replace(stage, options={**stage.options, _WANTED: multiplier})
    stages.append(stage)
  return dataclasses.replace(config, stages=tuple(stages))


def _calibrated(
  config: Config, key: str, make: Callable[..., Layer | tuple[Layer, ...]], chooser: Layer
) -> float:
  """Returns the least noise multiplier of a stage that keeps the budget.

  The bounds of some stages depend on their noise, such as those of a quantisation grid. There the
  noise is calibrated again until it keeps the budget with its own bounds.
  """
  privacy = config.privacy
  if privacy.target_epsilon is None or privacy.delta is None:
    raise ValueError(
      f'{key}.options.{_WANTED} must be given, or privacy.target_epsilon and privacy.delta to '
      'calibrate it, got neither.'
    )
  multiplier = _PROBE
  while True:
    stated = _stated(key, make(noise_multiplier=multiplier))
    with naming(stated.name, chooser):
      found = calibrate.noise_multiplier(
        privacy.target_epsilon,
        privacy.delta,
        law(chooser),
        config.rounds,
        stated.mechanism,
        bound=stated.bound,
        **accounting(config),
      )
    least = float(found.mechanism.noise_multiplier)
    if multiplier != _PROBE and least <= multiplier:
      return multiplier
    again = _stated(key, make(noise_multiplier=least))
    if again.resized(_PROBE) == stated:
      return least
    multiplier = least * _MARGIN


class _Stated(NamedTuple):
  """The noise of a stage: name of its layer, the mechanism, and the bound it is scaled to."""

  name: str
  mechanism: Mechanism
  bound: Bound

  def resized(self, multiplier: float) -> '_Stated':
    """Returns the same noise with another multiplier."""
    return self._replace(mechanism=self.mechanism.with_multiplier(multiplier))


def _stated(key: str, made: Layer | tuple[Layer, ...]) -> _Stated:
  """Returns the noise of a stage that is to be calibrated; it must be central and by client."""
  parts = Round((made,) if isinstance(made, Layer) else made)
  noisy = parts.having(Noises)
  if [(noise.trust, noise.unit) for _, _, noise in noisy] != [('central', 'client')]:
    raise ValueError(
      f'{key}.options.{_WANTED} must be given, got none: only central noise by client is '
      'calibrated.'
    )
  layer, side, noise = noisy[0]
  return _Stated(layer.name, noise.mechanism, parts.bound(layer, side, {}))


def law(chooser: Layer) -> Draws:
  """Returns how a layer draws the cohort (its fact `Draws`)."""
  found = chooser.fact(Draws)
  if found is None:
    raise ValueError(f'chooser must be a layer that draws the cohort, got {chooser.name!r}.')
  return found


@contextlib.contextmanager
def naming(stages: str, chooser: Layer) -> Iterator[None]:
  """Prefixes an `IncompatibleStages` error with the names of the noise's stage and the sampler."""
  try:
    yield
  except IncompatibleStages as error:
    raise IncompatibleStages(f'{stages!r} and {chooser.name!r} do not fit: {error}') from error


def accounting(config: Config) -> dict[str, Any]:
  """Returns the accountant and the adjacency of an experiment, as keyword arguments."""
  return {'adjacency': config.privacy.adjacency, 'accountant': config.privacy.accountant}
