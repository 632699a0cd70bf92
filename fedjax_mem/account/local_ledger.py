"""The ledger of noise that clients add themselves: epsilon of the client that took part most."""

import os
from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem.account import ledger as ledgers
from fedjax_mem.account.accountant import Options, claim
from fedjax_mem.account.guarantee import NOT_COVERED, Guarantee
from fedjax_mem.account.ledger import Entry
from fedjax_mem.core import Draws, Mechanism, validate


class LocalLedger:
  """The cost of the messages of the client with the most participations.

  For noise by client (each message is noised) and for noise by example (DP-SGD inside the client,
  `steps` noised gradients a participation).

  Attributes:
    entry: epsilon after each participation 1 … K.
    steps: noised releases a participation.
    budget: the epsilon that no client may exceed, or None.
    counts: [N] int64, participations of each client.
    rounds: rounds done.
    allowed: the most participations within the budget (K without one).
  """

  def __init__(
    self,
    entry: Entry,
    counts: ArrayLike,
    steps: int = 1,
    budget: float | None = None,
    rounds: int = 0,
  ):
    self.entry = entry
    self.steps = validate.integer(steps=steps)
    self.budget = None if budget is None else validate.positive(budget=budget)
    self.counts = np.array(counts, np.int64)
    self.rounds = validate.integer(at_least=0, rounds=rounds)
    self.allowed = ledgers.within(entry, self.budget, 'participation')

  @classmethod
  def plan(
    cls,
    name: str,
    mechanism: Mechanism,
    *,
    num_clients: int,
    rounds: int,
    delta: float,
    steps: int = 1,
    batches: Draws | None = None,
    budget: float | None = None,
    **how: Unpack[Options],
  ) -> 'LocalLedger':
    """Returns the ledger before the first round.

    Args:
      name: of the layer.
      mechanism: local noise, by client or by example.
      num_clients: N.
      rounds: K, the most participations to account for (the rounds of the run, or fewer where the
        sampler keeps clients apart).
      delta: target, in (0, 1).
      steps: noised releases a participation (local steps of DP-SGD).
      batches: noise by example: how a client draws its batches, of the client with the most
        examples; None: noise by client.
      budget: the epsilon no client may exceed, or None.
      **how: `bound`, `adjacency`, `accountant` and `notes`, as in `accountant.claim`.

    Raises:
      ValueError: a number is out of range, or a budget below one participation.
      IncompatibleStages: the batches and the mechanism have no valid event.
    """
    validate.integer(num_clients=num_clients)
    validate.integer(rounds=rounds)
    validate.integer(steps=steps)
    made = claim(
      batches,
      mechanism,
      rounds=rounds * steps,
      delta=delta,
      trust='local',
      unit='client' if batches is None else 'example',
      **how,
    )
    item = ledgers.ahead(name, made, rounds * steps, delta, every=steps, budget=budget)
    return cls(item, np.zeros(num_clients, np.int64), steps, budget)

  @property
  def most(self) -> int:
    """Participations of the client that took part most often."""
    return int(self.counts.max(initial=0))

  def stop_before(self, round: int) -> bool:
    """Returns whether some client could exceed the budget in round `round` (from 1)."""
    return validate.integer(round=round) > self.rounds and self.most + 1 > self.allowed

  def record(self, round: int, ids: ArrayLike) -> None:
    """Records who took part in round `round` (from 1); a round recorded before stays as it is.

    Args:
      round: the next round, or one recorded before.
      ids: [C] distinct clients whose message left them, padding removed.

    Raises:
      ValueError: a round is missing in between, or an id is no client or occurs twice.
    """
    if validate.integer(round=round) <= self.rounds:
      return
    if round > self.rounds + 1:
      raise ValueError(f'round must be {self.rounds + 1}, the next to record, got {round!r}.')
    ids = np.asarray(ids, np.int64)
    if len(np.unique(ids)) < len(ids) or np.any((ids < 0) | (ids >= len(self.counts))):
      raise ValueError(f'ids must be distinct and in [0, {len(self.counts)}), got {ids!r}.')
    counts = self.counts.copy()
    counts[ids] += 1
    if counts.max(initial=0) > self.allowed:
      raise ValueError(
        f'participations must be at most {self.allowed} a client, got {counts.max()} in round '
        f'{round}.'
      )
    self.counts, self.rounds = counts, round

  def guarantee(self) -> Guarantee:
    """Returns the statement for the client with the most participations, after the rounds done."""
    return self.entry.guarantee(self.most)._replace(rounds=self.rounds)

  def metrics(self) -> dict[str, float]:
    """Returns {'epsilon', 'delta', 'participations'} of the client with the most of them."""
    stated = self.guarantee()
    return {'epsilon': stated.epsilon, 'delta': stated.delta, 'participations': float(self.most)}

  def to_dict(self) -> dict[str, Any]:
    """Returns the ledger as plain data for JSON; only clients that took part are listed."""
    took_part = np.flatnonzero(self.counts)
    return {
      'version': ledgers.VERSION,
      'kind': 'local',
      'rounds': self.rounds,
      'budget': self.budget,
      'allowed': self.allowed,
      'steps': self.steps,
      'guarantee': ledgers.describe(self.guarantee()),
      'logged losses and norms': NOT_COVERED,
      'entry': ledgers.entry_to_dict(self.entry),
      'num_clients': len(self.counts),
      'clients': took_part.tolist(),
      'participations': self.counts[took_part].tolist(),
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> 'LocalLedger':
    """Returns the ledger whose `to_dict` gave the data, bit for bit."""
    counts = np.zeros(data['num_clients'], np.int64)
    counts[data['clients']] = data['participations']
    return cls(
      ledgers.entry_from_dict(data['entry']), counts, data['steps'], data['budget'], data['rounds']
    )

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the ledger atomically; call it before the round's checkpoint is saved, never after."""
    ledgers.write(path, self.to_dict())

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'LocalLedger':
    """Returns the ledger of a file; `ValueError` if it is not a complete one of this version."""
    return ledgers.read(path, 'local', cls.from_dict)

  def resume(self, path: str | os.PathLike[str]) -> 'LocalLedger':
    """Returns this plan with the participations, and the accountant, of a saved ledger of the run.

    Raises:
      ValueError: the file is no ledger, or one of another noise, population, delta, or accountant
        than the one asked for.
    """
    saved = LocalLedger.load(path)
    if (saved.steps, len(saved.counts)) != (self.steps, len(self.counts)):
      raise ValueError(
        f'{path} must be the ledger of {len(self.counts)} clients and {self.steps} steps, got '
        f'{len(saved.counts)} and {saved.steps}.'
      )
    entry = ledgers.resumed(saved.entry, self.entry, path, self.steps, self.budget)
    return LocalLedger(entry, saved.counts, self.steps, self.budget, saved.rounds)
