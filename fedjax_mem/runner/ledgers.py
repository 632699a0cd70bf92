"""The privacy ledgers of a run: they record what its noise has cost, round by round."""

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
  """The ledgers of a run: one for central noise, and one for each layer of local noise.

  Attributes:
    central: ledger of the noise on the sum, or None.
    local: layer name -> ledger of the noise that clients add themselves.
    apart: min_sep, the least number of rounds from one participation of a client to its next.
  """

  def __init__(self, central: Ledger | None, local: dict[str, LocalLedger], apart: int = 1):
    self.central, self.local, self.apart = central, local, apart

  def room(self, done: int, planned: int) -> int:
    """Returns how many of the rounds after `done` may run at once without exceeding a budget."""
    ends = [planned] if self.central is None else [planned, self.central.allowed]
    for x in self.local.values():
      # A client takes part in at most one of `apart` consecutive rounds. Rounds that are run again
      # after a resume are in the ledger already: the second bound does not count them twice.
      ends.append(max(x.allowed * self.apart, x.rounds + (x.allowed - x.most) * self.apart))
    return max(0, min(ends) - done)

  def record(self, first: int, ids: np.ndarray) -> list[dict[str, Any]]:
    """Records R rounds, and returns for each the privacy facts to add to its metrics.

    Args:
      first: number of the first of these rounds, 1-based.
      ids: [R, C] clients that sent a message in each round, arrived or not; -1 is padding.
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
      elif self.local:  # the run's guarantee is the weakest of the clients'
        facts['epsilon'] = max(x.guarantee().epsilon for x in self.local.values())
      added.append(facts)
    return added

  def statements(self) -> list[str]:
    """Returns the guarantees so far, a line for each ledger: epsilon, delta, accountant, …."""
    lines = [str(self.central.guarantee())] if self.central else []
    return lines + [f'{name}: {x.guarantee()}' for name, x in self.local.items()]

  def save(self, folder: pathlib.Path) -> None:
    """Writes `ledger.json`, and one more for each layer of local noise.

    Call it before the checkpoint of the same round is saved: after a crash the ledger may then
    count a release that the resumed run makes again, but it never misses one.
    """
    if self.central is not None:
      self.central.save(folder / 'ledger.json')
    for name, ledger in self.local.items():
      ledger.save(folder / f'ledger-{name}.json')

  def resume(self, folder: pathlib.Path, done: int) -> None:
    """Loads what the interrupted run has recorded.

    Args:
      folder: folder of the run.
      done: number of rounds in the checkpoint that the run resumes from.

    Raises:
      ValueError: the ledger is of another run, or has fewer rounds than the checkpoint.
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
    layers: layers of its round.
    counts: [N] examples of each client.
    specs: layer name -> shapes that its client side receives, for bounds that depend on them.

  Raises:
    ValueError: no delta for a run with noise, a budget without noise or below one round.
    IncompatibleStages: no accountant supports the sampler with the mechanism.
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
  """Returns the ledger of noise that clients add, for at most `most` participations of a client."""
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
  """Returns the facts of a run's privacy for its manifest."""
  if ledgers is None:
    return {}
  lines = ledgers.statements()
  return {'privacy': {'statements': lines, 'not covered': account.NOT_COVERED}}


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the central ledger of a run's folder as plain data.

  Raises:
    FileNotFoundError: the run has no central ledger.
  """
  ledger: dict[str, Any] = json.loads((pathlib.Path(folder) / 'ledger.json').read_text())
  return ledger
