"""The ledgers of a run: what its noise has cost, kept while it runs."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem import account
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.config.load import Config
from fedjax_mem.config.privacy import accounting, naming
from fedjax_mem.core import IN_ROUND, Noises, Round


class Ledgers:
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


def open_ledgers(
  config: Config, layers: Round, counts: ArrayLike, specs: Mapping[str, Any] | None = None
) -> Ledgers | None:
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
    how = {'delta': privacy.delta, 'budget': privacy.target_epsilon, **accounting(config)}
    if noise.unit == 'client':
      bound = layers.bound(layer, side, dict(specs or {}))
      how['bound'] = None if IN_ROUND in bound else bound
    if noise.trust == 'central':
      with naming(layer.name, chooser):
        ledger = Ledger.plan(sampling, layer.name, noise.mechanism, rounds=config.rounds, **how)
    else:
      most = -(-config.rounds // sampling.min_sep)
      local[layer.name] = _local(layer.name, noise, most, np.asarray(counts), how)
  return Ledgers(ledger, local, sampling.min_sep)


def _local(
  name: str, noise: Noises, most: int, counts: np.ndarray, how: dict[str, Any]
) -> LocalLedger:
  """Returns the ledger of noise that clients add, for `most` participations."""
  batches = None if noise.draws is None else noise.draws(int(counts.max()))
  return LocalLedger.plan(
    name,
    noise.mechanism,
    num_clients=len(counts),
    rounds=most,
    steps=noise.steps,
    batches=batches,
    **how,
  )


def facts(ledgers: Ledgers | None) -> dict[str, Any]:
  """Returns what the manifest says of a run's privacy."""
  if ledgers is None:
    return {}
  lines = ledgers.statements()
  return {'privacy': {'statements': lines, 'not covered': account.NOT_COVERED}}


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the central ledger of a run's folder as plain data.

  Raises:
    FileNotFoundError: the run has none.
  """
  ledger: dict[str, Any] = json.loads((pathlib.Path(folder) / 'ledger.json').read_text())
  return ledger
