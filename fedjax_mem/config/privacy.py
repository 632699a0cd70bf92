"""What a configuration says of privacy, settled before the first round: rows, calibrated noise."""

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

_UNBOUNDED = 10.0  # epsilon that a cohort's capacity leaves room for, where no budget says less
_WANTED = 'noise_multiplier'
_PROBE = 1e-3  # small: a stage may bound its multiplier from above
_MARGIN = 1 + 1e-6  # so that noise which the bounds hardly depend on is soon enough


def capacity(config: Config, num_clients: int) -> int | None:
  """Returns the rows of a Poisson cohort that its privacy needs, or None without privacy.

  The rows are so many that an overflow in the whole run costs at most a hundredth of delta.
  """
  if config.privacy.delta is None:
    return None
  budget = config.privacy.target_epsilon or _UNBOUNDED
  size = config.selection.cohort_size
  return poisson.capacity(num_clients, size, config.rounds, config.privacy.delta, budget)


def unsaid(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments that an experiment gives to a stage whose options do not say them."""
  return {name: value for name, value in given.items() if name not in options}


def settled(config: Config, chooser: Layer, given: Mapping[str, Any] | None = None) -> Config:
  """Returns the experiment with the noise multipliers that its budget asks for written out.

  Nothing is changed for a stage without one, or with one given.

  Args:
    config: the experiment; `privacy.target_epsilon` and `privacy.delta` are the budget.
    chooser: the layer that draws the cohort.
    given: arguments that the experiment gives to stages which take them.

  Raises:
    ValueError: no noise multiplier and no budget, or noise that cannot be calibrated.
    IncompatibleStages: no accountant has an event for the sampler and the noise.
  """
  stages = []
  for number, stage in enumerate(config.stages):
    key = f'stages[{number}]'
    make = registry.factory(f'{key}.use', stage.use, registry.LAYERS)
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

  Where the bounds of a stage depend on its noise, such as those of a grid, the noise is calibrated
  again until it keeps the budget with the bounds that it makes.
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
  """What a stage states of its noise: name of its layer, the mechanism, what it is scaled to."""

  name: str
  mechanism: Mechanism
  bound: Bound

  def resized(self, multiplier: float) -> '_Stated':
    """Returns the same with another multiplier."""
    return self._replace(mechanism=self.mechanism.with_multiplier(multiplier))


def _stated(key: str, made: Layer | tuple[Layer, ...]) -> _Stated:
  """Returns what is known of the one layer of a stage whose noise is calibrated."""
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
  """Returns how a layer draws the cohort."""
  found = chooser.fact(Draws)
  if found is None:
    raise ValueError(f'chooser must be a layer that draws the cohort, got {chooser.name!r}.')
  return found


@contextlib.contextmanager
def naming(stages: str, chooser: Layer) -> Iterator[None]:
  """Puts the names of both sides before what the accounts say against a pair."""
  try:
    yield
  except IncompatibleStages as error:
    raise IncompatibleStages(f'{stages!r} and {chooser.name!r} do not fit: {error}') from error


def accounting(config: Config) -> dict[str, Any]:
  """Returns how the claims of an experiment are accounted."""
  return {'adjacency': config.privacy.adjacency, 'accountant': config.privacy.accountant}
