"""Privacy of a run: noise calibrated when it is built, and ledgers kept while it runs."""

import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fedjax_mem import account
from fedjax_mem.account import calibrate, poisson
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.core import Layer, Mechanism, Sampling, selector
from fedjax_mem.experiment.config import Config

_UNBOUNDED = 10.0  # epsilon that a cohort's capacity leaves room for, where no budget says less


def capacity(config: Config, num_clients: int) -> int | None:
  """Returns the rows of a Poisson cohort that its privacy needs, or None without privacy.

  The rows are so many that an overflow in the whole run costs at most a hundredth of delta.
  """
  if config.privacy.delta is None:
    return None
  budget = config.privacy.target_epsilon or _UNBOUNDED
  size = config.selection.cohort_size
  return poisson.capacity(num_clients, size, config.rounds, config.privacy.delta, budget)


def calibrated(
  config: Config, make: Callable[..., Layer], options: dict[str, Any], sampling: Sampling
) -> dict[str, Any]:
  """Returns the options of a stage with the noise multiplier that the budget asks for.

  Nothing is changed for a stage without one, or with one given.

  Args:
    config: the experiment; `privacy.target_epsilon` and `privacy.delta` are the budget.
    make: factory of the stage.
    options: what the configuration gives it.
    sampling: what the sampler does.

  Raises:
    ValueError: no noise multiplier and no budget, or noise that cannot be calibrated.
  """
  wanted = 'noise_multiplier'
  if wanted in options or wanted not in inspect.signature(make).parameters:
    return options
  privacy = config.privacy
  if privacy.target_epsilon is None or privacy.delta is None:
    raise ValueError(
      f'{wanted} of {make.__name__!r} must be given, or privacy.target_epsilon and privacy.delta '
      'to calibrate it, got neither.'
    )
  mechanism = make(**options, noise_multiplier=1.0).traits.mechanism
  if mechanism is None or (mechanism.trust, mechanism.unit) != ('central', 'client'):
    raise ValueError(
      f'{wanted} of {make.__name__!r} must be given: only central noise by client is calibrated.'
    )
  found = calibrate.noise_multiplier(
    privacy.target_epsilon, privacy.delta, sampling, config.rounds, mechanism, **_how(config)
  )
  return {**options, wanted: found.mechanism.noise_multiplier}


def _how(config: Config) -> dict[str, Any]:
  return {'adjacency': config.privacy.adjacency, 'accountant': config.privacy.accountant}


class Books:
  """The ledgers of a run: one of the server's releases, one for each layer of clients' own noise.

  Attributes:
    central: of the noise on the sum, or None.
    local: layer name -> of the noise that clients add themselves.
  """

  def __init__(self, central: Ledger | None, local: dict[str, LocalLedger]):
    self.central, self.local = central, local

  def room(self, done: int, planned: int) -> int:
    """Returns how many of the rounds after `done` may run at once without exceeding a budget."""
    allowed = planned if self.central is None else min(planned, self.central.allowed)
    # A client takes part at most once a round.
    left = [x.allowed - x.most for x in self.local.values()]
    return max(0, min([allowed - done, *left]))

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

  def resume(self, folder: pathlib.Path) -> None:
    """Takes over what earlier parts of the run have recorded."""
    if self.central is not None and (folder / 'ledger.json').exists():
      self.central = self.central.resume(folder / 'ledger.json')
    for name, ledger in self.local.items():
      if (folder / f'ledger-{name}.json').exists():
        self.local[name] = ledger.resume(folder / f'ledger-{name}.json')


def open_books(config: Config, layers: Iterable[Layer], num_clients: int) -> Books | None:
  """Returns the ledgers of a run before its first round, or None if nothing adds noise.

  Raises:
    ValueError: no delta for a run with noise, a budget without noise or below one round.
    IncompatibleStages: a sampler and a mechanism that no accountant has an event for.
  """
  layers = tuple(layers)
  noisy = {x.name: x.traits.mechanism for x in layers if x.traits.mechanism is not None}
  privacy = config.privacy
  if not noisy:
    if privacy.target_epsilon is not None:
      raise ValueError(
        'privacy.target_epsilon must be left out without a stage that adds noise, '
        f'got {privacy.target_epsilon!r}.'
      )
    return None
  if privacy.delta is None:
    raise ValueError(
      f'privacy.delta must be given for a run with noise ({", ".join(noisy)}), got none.'
    )
  central = {k: m for k, m in noisy.items() if m.trust == 'central'}
  common = {'rounds': config.rounds, 'delta': privacy.delta, **_how(config)}
  sampling = selector(layers)[1].sampling
  ledger = None
  if central:
    ledger = Ledger.plan(sampling, central, budget=privacy.target_epsilon, **common)
  local = {
    name: _local(name, mechanism, sampling, config, num_clients, privacy.delta)
    for name, mechanism in noisy.items()
    if mechanism.trust == 'local'
  }
  return Books(ledger, local)


def _local(
  name: str,
  mechanism: Mechanism,
  sampling: Sampling,
  config: Config,
  num_clients: int,
  delta: float,
) -> LocalLedger:
  apart = sampling.separation or 1
  return LocalLedger.plan(
    name,
    mechanism,
    num_clients=num_clients,
    rounds=-(-config.rounds // apart),
    delta=delta,
    budget=config.privacy.target_epsilon,
    **_how(config),
  )


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
