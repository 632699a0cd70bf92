"""The privacy ledgers of a run: what its noise costs is charged before each segment of rounds."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.config.load import Config
from fedjax_mem.config.privacy import accounting, naming
from fedjax_mem.core import IN_ROUND, Noises, Round

# What a statement says of noise that is no secret.
REPEATABLE = "repeatable from noise_seed: epsilon is the mechanism's, not that of these files"


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
      ends.append(max(x.allowed * self.apart, x.charged + (x.allowed - x.most) * self.apart))
    return max(0, min(ends) - done)

  def charge(self, first: int, count: int, ids: np.ndarray | None = None) -> None:
    """Charges rounds that are about to run; those charged before stay as they are.

    Args:
      first: number of the first of these rounds, 1-based.
      count: how many they are.
      ids: [count, C] clients drawn for each, arriving or not, below 0 or from N on: padding; needed
        for local ledgers only.

    Raises:
      ValueError: the budget does not cover one of the rounds.
    """
    if self.central is not None:
      self.central.charge(first + count - 1)
    for ledger in self.local.values():
      for number, row in enumerate(np.asarray(ids), first):
        ledger.charge(number, row[(row >= 0) & (row < len(ledger.counts))])

  def metrics(self, number: int) -> dict[str, Any]:
    """Returns the privacy facts to add to the metrics of round `number`, which is charged."""
    facts = {
      f'{name}/{key}': value
      for name, ledger in self.local.items()
      for key, value in ledger.metrics(number).items()
    }
    if self.central is not None:
      return facts | self.central.metrics(number)
    # The run's guarantee is the weakest of the clients'.
    return facts | {'epsilon': max(x.guarantee(number).epsilon for x in self.local.values())}

  def finish(self, number: int) -> None:
    """Notes that the records of `number` rounds are written; the next `save` keeps it."""
    for ledger in self._all().values():
      ledger.finish(number)

  def _all(self) -> dict[str, Ledger | LocalLedger]:
    """Returns file name -> ledger."""
    central = {} if self.central is None else {'ledger.json': self.central}
    return {**central, **{f'ledger-{name}.json': x for name, x in self.local.items()}}

  def statements(self) -> list[str]:
    """Returns the guarantees so far, a line for each ledger: epsilon, delta, accountant, …."""
    lines = [str(self.central.guarantee())] if self.central else []
    return lines + [f'{name}: {x.guarantee()}' for name, x in self.local.items()]

  def save(self, folder: pathlib.Path) -> None:
    """Writes `ledger.json`, and one more for each layer of local noise, onto the disk.

    Call it after `charge` and before the rounds run: a ledger may then count rounds that never ran,
    but whatever is published of a round, it has been counted.
    """
    for name, ledger in self._all().items():
      ledger.save(folder / name)

  def resume(self, folder: pathlib.Path, done: int, published: int) -> None:
    """Loads what the interrupted run has charged.

    Args:
      folder: folder of the run.
      done: number of rounds in the checkpoint that the run resumes from.
      published: number of rounds that the folder holds a record of.

    Raises:
      ValueError: the ledger is of another run, or states fewer rounds than are in the folder.
    """
    for name, ledger in self._all().items():
      resumed = _taken_over(ledger, folder / name, done, published)
      if isinstance(resumed, LocalLedger):
        self.local[resumed.entry.layer] = resumed
      else:
        self.central = resumed


def _taken_over(
  ledger: Ledger | LocalLedger, file: pathlib.Path, done: int, published: int
) -> Ledger | LocalLedger:
  if file.exists():
    ledger = ledger.resume(file)
  for what, rounds in (('checkpoint', done), ('records', published)):
    if ledger.charged < rounds:
      raise ValueError(
        f'{file} must have charged the {rounds} rounds of the {what}, got {ledger.charged}: put '
        "the run's own back."
      )
  ledger.finish(done)  # the records of later rounds are written again
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
    how = {
      'delta': privacy.delta,
      'budget': privacy.target_epsilon,
      'notes': layers.caveats + (() if config.noise_seed is None else (REPEATABLE,)),
      **accounting(config),
    }
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


def facts(ledgers: Ledgers | None, ended: bool = False) -> dict[str, Any]:
  """Returns the facts of a run's privacy for its manifest.

  Args:
    ledgers: those of the run.
    ended: whether its rounds have ended. Before, the manifest states nothing: it is not written as
      often as the ledgers are, and would state too little.
  """
  if ledgers is None:
    return {}
  return {'privacy': {'statements': ledgers.statements() if ended else []}}


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the central ledger of a run's folder as plain data.

  Raises:
    FileNotFoundError: the run has no central ledger.
  """
  ledger: dict[str, Any] = json.loads((pathlib.Path(folder) / 'ledger.json').read_text())
  return ledger
