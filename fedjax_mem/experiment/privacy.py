"""Privacy of a run: noise calibrated when it is built, and ledgers kept while it runs."""

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem import account
from fedjax_mem.account import calibrate, poisson
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.core import (
  IN_ROUND,
  Bound,
  Draws,
  IncompatibleStages,
  Layer,
  Mechanism,
  Noises,
  Round,
)
from fedjax_mem.experiment import registry
from fedjax_mem.experiment.config import Config

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
    with _named(stated.name, chooser):
      found = calibrate.noise_multiplier(
        privacy.target_epsilon,
        privacy.delta,
        law(chooser),
        config.rounds,
        stated.mechanism,
        bound=stated.bound,
        **_how(config),
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
def _named(stages: str, chooser: Layer) -> Iterator[None]:
  """Puts the names of both sides before what the accounts say against a pair."""
  try:
    yield
  except IncompatibleStages as error:
    raise IncompatibleStages(f'{stages!r} and {chooser.name!r} do not fit: {error}') from error


def _how(config: Config) -> dict[str, Any]:
  return {'adjacency': config.privacy.adjacency, 'accountant': config.privacy.accountant}


class Books:
  """The ledgers of a run: one of the server's releases, one for each layer of clients' own noise.

  Attributes:
    central: of the noise on the sum, or None.
    local: layer name -> of the noise that clients add themselves.
    apart: rounds between two participations of a client at the least.
  """

  def __init__(self, central: Ledger | None, local: dict[str, LocalLedger], apart: int = 1):
    self.central, self.local, self.apart = central, local, apart

  def room(self, done: int, planned: int) -> int:
    """Returns how many of the rounds after `done` may run at once without exceeding a budget."""
    ends = [planned] if self.central is None else [planned, self.central.allowed]
    for x in self.local.values():
      # Of `apart` rounds in a row a client takes part in one at the most. Rounds that the ledger
      # has, and that are run again after a resume, are counted already.
      ends.append(max(x.allowed * self.apart, x.rounds + (x.allowed - x.most) * self.apart))
    return max(0, min(ends) - done)

  def record(self, first: int, ids: np.ndarray) -> list[dict[str, Any]]:
    """Records rounds from `first` (1-based) on, and returns what each adds to its record.

    Args:
      first: number of the first of the rounds.
      ids: [R, C] clients whose message left them in each round; -1 is padding.
    """
    added = []
    for number, row in enumerate(ids, first):
      facts: dict[str, Any] = {}
      for name, ledger in self.local.items():
        ledger.record(number, row[row >= 0])
        facts |= {f'{name}/{key}': value for key, value in ledger.metrics().items()}
      if self.central is not None:
        self.central.advance(number)
        facts |= self.central.metrics(number)
      elif self.local:  # the weakest of the clients' guarantees is the run's
        facts['epsilon'] = max(x.guarantee().epsilon for x in self.local.values())
      added.append(facts)
    return added

  def statements(self) -> list[str]:
    """Returns what holds now, a line for each ledger: epsilon, delta, accountant, adjacency."""
    lines = [str(self.central.guarantee())] if self.central else []
    return lines + [f'{name}: {x.guarantee()}' for name, x in self.local.items()]

  def save(self, folder: pathlib.Path) -> None:
    """Writes `ledger.json`, and one more for each layer of local noise.

    To be called before the checkpoint of the same round: a release may be counted although the run
    goes back before it, but never the other way round.
    """
    if self.central is not None:
      self.central.save(folder / 'ledger.json')
    for name, ledger in self.local.items():
      ledger.save(folder / f'ledger-{name}.json')

  def resume(self, folder: pathlib.Path, done: int) -> None:
    """Takes over what earlier parts of the run have recorded.

    Args:
      folder: of the run.
      done: rounds of the checkpoint that the run goes on from.

    Raises:
      ValueError: a ledger of another run, or one that has fewer rounds than the checkpoint.
    """
    if self.central is not None:
      self.central = _taken_over(self.central, folder / 'ledger.json', done)
    for name, ledger in self.local.items():
      self.local[name] = _taken_over(ledger, folder / f'ledger-{name}.json', done)


def _taken_over(ledger: Any, file: pathlib.Path, done: int) -> Any:
  if file.exists():
    ledger = ledger.resume(file)
  if ledger.rounds < done:
    raise ValueError(
      f'{file} must record the {done} rounds of the checkpoint, got {ledger.rounds}: put the '
      "run's own back."
    )
  return ledger


def open_books(
  config: Config, layers: Round, counts: ArrayLike, specs: Mapping[str, Any] | None = None
) -> Books | None:
  """Returns the ledgers of a run before its first round, or None if nothing adds noise.

  Args:
    config: the experiment.
    layers: of its round.
    counts: [N] examples of each client.
    specs: for each layer, the shapes that its client side receives, for bounds that ask for them.

  Raises:
    ValueError: no delta for a run with noise, a budget without noise or below one round.
    IncompatibleStages: a sampler and a mechanism that no accountant has an event for.
  """
  noisy = layers.having(Noises)
  privacy = config.privacy
  if not noisy:
    if privacy.target_epsilon is not None:
      raise ValueError(
        'privacy.target_epsilon must be left out without a stage that adds noise, '
        f'got {privacy.target_epsilon!r}.'
      )
    return None
  if privacy.delta is None:
    names = ', '.join(x.name for x, _, _ in noisy)
    raise ValueError(f'privacy.delta must be given for a run with noise ({names}), got none.')
  chooser, sampling = layers.drawing, layers.draws
  ledger, local = None, {}
  for layer, side, noise in noisy:
    how = {'delta': privacy.delta, 'budget': privacy.target_epsilon, **_how(config)}
    if noise.unit == 'client':
      bound = layers.bound(layer, side, dict(specs or {}))
      how['bound'] = None if IN_ROUND in bound else bound
    if noise.trust == 'central':
      with _named(layer.name, chooser):
        ledger = Ledger.plan(sampling, layer.name, noise.mechanism, rounds=config.rounds, **how)
    else:
      most = -(-config.rounds // sampling.min_sep)
      local[layer.name] = _local(layer.name, noise, most, np.asarray(counts), how)
  return Books(ledger, local, sampling.min_sep)


def _local(
  name: str, noise: Noises, most: int, counts: np.ndarray, how: dict[str, Any]
) -> LocalLedger:
  """Returns the ledger of noise that clients add, for `most` participations."""
  batches = None if noise.draws is None else noise.draws(int(counts.max()))
  sizes = {'num_clients': len(counts), 'rounds': most, 'steps': noise.steps}
  return LocalLedger.plan(name, noise.mechanism, batches=batches, **sizes, **how)


def facts(books: Books | None) -> dict[str, Any]:
  """Returns what the manifest says of a run's privacy."""
  if books is None:
    return {}
  lines = books.statements()
  return {'privacy': {'statements': lines, 'not covered': account.NOT_COVERED}}


def read(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns the central ledger of a run's folder as plain data.

  Raises:
    FileNotFoundError: the run has none.
  """
  return json.loads((pathlib.Path(folder) / 'ledger.json').read_text())
