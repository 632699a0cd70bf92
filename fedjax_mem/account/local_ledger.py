"""The ledger of noise that clients add themselves: epsilon of the client that took part most."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.account import ledger as ledgers
from fedjax_mem.account.accountant import Options, claim
from fedjax_mem.account.guarantee import Guarantee
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
    counts: [N] int64, participations of each client in the rounds charged.
    trail: participations of the client with the most of them, after each round charged.
    done: rounds whose records are written, at most `charged`.
    allowed: the most participations within the budget (K without one).
  """

  def __init__(
    self,
    entry: Entry,
    counts: ArrayLike,
    steps: int = 1,
    budget: float | None = None,
    trail: Sequence[int] = (),
    done: int = 0,
  ):
    self.entry = entry
    self.steps = validate.integer(steps=steps)
    self.budget = None if budget is None else validate.positive(budget=budget)
    self.counts = np.array(counts, np.int64)
    self.trail = list(trail)
    self.done = validate.integer(at_least=0, at_most=self.charged, done=done)
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
  def charged(self) -> int:
    """Rounds charged."""
    return len(self.trail)

  @property
  def most(self) -> int:
    """Participations of the client that took part most often, in the rounds charged."""
    return self.trail[-1] if self.trail else 0

  def stop_before(self, round: int) -> bool:
    """Returns whether some client could exceed the budget in round `round` (from 1)."""
    return validate.integer(round=round) > self.charged and self.most + 1 > self.allowed

  def charge(self, round: int, ids: ArrayLike) -> None:
    """Charges those drawn for round `round` (from 1), before it runs; once for each round.

    Args:
      round: the next round, or one charged before.
      ids: [C] distinct clients that are drawn, padding removed; those that drop out are among
        them, since only the round itself tells whose message leaves.

    Raises:
      ValueError: a round is missing in between, an id is no client or occurs twice, or the budget
        does not cover a participation.
    """
    if validate.integer(round=round) <= self.charged:
      return
    if round > self.charged + 1:
      raise ValueError(f'round must be {self.charged + 1}, the next to charge, got {round!r}.')
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
    self.counts = counts
    self.trail.append(int(counts.max(initial=0)))

  def finish(self, round: int) -> None:
    """Notes that the records of `round` rounds are written; `ValueError` if one is not charged."""
    self.done = validate.integer(0, self.charged, round=round)

  def guarantee(self, round: int | None = None) -> Guarantee:
    """Returns the statement for the client with the most participations.

    Args:
      round: after that many rounds; None: after all that are charged.

    Raises:
      ValueError: a round that was not charged.
    """
    number = self.charged if round is None else validate.integer(0, self.charged, round=round)
    return self.entry.guarantee(self._most(number))._replace(rounds=number)

  def _most(self, round: int) -> int:
    return self.trail[round - 1] if round else 0

  def metrics(self, round: int) -> dict[str, float]:
    """Returns {'epsilon', 'delta', 'participations'} of the client with the most of them.

    Args:
      round: after that many of the rounds charged.
    """
    stated = self.guarantee(round)
    return {
      'epsilon': stated.epsilon,
      'delta': stated.delta,
      'participations': float(self._most(round)),
    }

  def to_dict(self) -> dict[str, Any]:
    """Returns the ledger as plain data for JSON; only clients that took part are listed."""
    took_part = np.flatnonzero(self.counts)
    return {
      'version': ledgers.VERSION,
      'kind': 'local',
      'charged': self.charged,
      'done': self.done,
      'budget': self.budget,
      'allowed': self.allowed,
      'steps': self.steps,
      'guarantee': ledgers.describe(self.guarantee()),
      'logged losses and norms': NOT_COVERED,
      'entry': ledgers.entry_to_dict(self.entry),
      'num_clients': len(self.counts),
      'clients': took_part.tolist(),
      'participations': self.counts[took_part].tolist(),
      'trail': self.trail,
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> 'LocalLedger':
    """Returns the ledger whose `to_dict` gave the data, bit for bit."""
    counts = np.zeros(data['num_clients'], np.int64)
    counts[data['clients']] = data['participations']
    if data['charged'] != len(data['trail']):
      raise ValueError(f'{data["charged"]} rounds charged, but a trail of {len(data["trail"])}')
    return cls(
      ledgers.entry_from_dict(data['entry']),
      counts,
      data['steps'],
      data['budget'],
      data['trail'],
      data['done'],
    )

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the ledger atomically, for its owner's eyes alone: it lists who was drawn how often.

    Beside noise on the sum that a secret draw amplifies, that would tell the cohort.
    """
    ledgers.write(path, self.to_dict(), mode=0o600)

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
    return LocalLedger(entry, saved.counts, self.steps, self.budget, saved.trail, saved.done)
