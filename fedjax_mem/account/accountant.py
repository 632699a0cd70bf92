"""Epsilon of a run, by Renyi differential privacy (RDP) or by privacy loss distributions (PLD).

`claim` takes a sampler and a mechanism, and returns a `Claim` by the accountant that bounds epsilon
lower after the planned rounds, of those that support them. The claim gives epsilon after any number
of rounds, and the whole trajectory before the run begins.

Both are upper bounds. RDP loses something when it is converted to epsilon; PLD only as much as its
grid is coarse. At low sampling rates RDP may claim several times as much as PLD.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TypedDict, Unpack

from fedjax_mem.account import events, poisson
from fedjax_mem.account.claims import Claim
from fedjax_mem.account.guarantee import Guarantee, Trajectory
from fedjax_mem.core import Bound, Draws, Mechanism, validate


def check_delta(delta: float, population: int | None = None) -> float:
  """Returns delta, in (0, 1); warns where it would allow publishing one client's data.

  Raises:
    ValueError: delta is not in (0, 1).
  """
  validate.open_fraction(delta=delta)
  if population and delta >= 1 / population:
    warnings.warn(
      f'delta should be well below 1 / {population} (one over the population), got {delta!r}: a '
      'mechanism that publishes the data of one client at random would satisfy it.',
      UserWarning,
      stacklevel=3,
    )
  return delta


class Options(TypedDict, total=False):
  """The arguments of `claim` that say how to account for a run."""

  adjacency: str | None
  accountant: str
  bound: Bound | None
  notes: tuple[str, ...]


class ClaimOptions(Options, total=False):
  """All optional arguments of `claim`: also those that only the statement contains."""

  trust: str | None
  unit: str


def claim(
  sampling: Draws | None,
  mechanism: Mechanism,
  *,
  rounds: int,
  delta: float,
  adjacency: str | None = None,
  accountant: str = 'auto',
  bound: Bound | None = None,
  trust: str | None = None,
  unit: str = 'client',
  notes: tuple[str, ...] = (),
) -> Claim:
  """Returns what can be claimed of a sampler and a mechanism, by an accountant that supports them.

  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> run = {'mechanism': fm.mechanisms.Gaussian(1.2), 'rounds': 100, 'delta': 1e-5}
  >>> both = [claim(sampling, accountant=x, **run) for x in ('rdp', 'auto')]
  >>> [(made.accountant, round(made.epsilon(100, 1e-5), 2)) for made in both]
  [('rdp', 1.99), ('pld', 1.71)]

  Args:
    sampling: how the cohort is drawn; None: noise that each client adds to its own message.
    mechanism: the noise.
    rounds: rounds of the whole run, >= 1.
    delta: target, in (0, 1).
    adjacency: one of `events.ADJACENCIES`; by default the first of `mechanism.adjacencies`.
    accountant: 'rdp', 'pld', or 'auto': the one whose epsilon is less after `rounds` rounds.
    bound: the bound that the noise is scaled to; needed where the cost depends on it (noise on
      integers).
    trust: 'central' or 'local', for the statement; by default local without a sampler.
    unit: 'client' or 'example', for the statement.
    notes: caveats, for the statement.

  Raises:
    ValueError: a number is out of range.
    IncompatibleStages: the pair has no valid event, or none that the accountant supports.
  """
  validate.integer(rounds=rounds)
  check_delta(delta, None if sampling is None else sampling.population)
  validate.one_of(('auto', *events.ACCOUNTANTS), accountant=accountant)
  events.check(sampling, mechanism)
  adjacency = adjacency or mechanism.adjacencies(sampling)[0]
  events.check_adjacency(sampling, mechanism, adjacency)
  names = events.ACCOUNTANTS if accountant == 'auto' else (accountant,)
  trust = trust or ('local' if sampling is None else 'central')
  first = Claim(sampling, mechanism, adjacency, names[0], False, bound, trust, unit, tuple(notes))
  claims = [dataclasses.replace(first, accountant=name) for name in names]
  held = [made for made in claims if made.supported(rounds)]
  if not held:
    raise events.refuse(sampling, mechanism, _reason(first, rounds, names))
  if accountant != 'auto':
    return _fitting(held[0], rounds, delta, accountant)
  return dataclasses.replace(_tightest(held, rounds, delta), chosen=True)


def _tightest(held: Sequence[Claim], rounds: int, delta: float) -> Claim:
  """Returns the claim with the least epsilon after `rounds` rounds."""
  fitting = [_fitting(made, rounds, delta, 'auto') for made in held]
  # Where RDP's epsilon is larger, cutting cohorts may cost too much of delta for RDP alone.
  fitting = [made for made in fitting if not made.truncated] or fitting[-1:]
  found = fitting[0]
  for other in fitting[1:]:
    least = found.epsilon(rounds, delta)
    if least > 0 and other.epsilon(rounds, delta) < least:  # 0 needs no other bound
      found = other
  return found


def _reason(made: Claim, rounds: int, names: Sequence[str]) -> str:
  """Returns why no accountant supports a claim, and which similar claims are supported."""
  others = [
    f'{name!r} with {other!r}'
    for name in events.ACCOUNTANTS
    for other in events.ADJACENCIES
    if _holds(dataclasses.replace(made, adjacency=other, accountant=name), rounds)
  ]
  remedy = f'; supported: {", ".join(others)}' if others else ''
  return f'no event of {" or ".join(map(repr, names))} covers it with {made.adjacency!r}{remedy}'


def _holds(made: Claim, rounds: int) -> bool:
  try:
    return made.supported(rounds)
  except ValueError:
    return False


def _fitting(made: Claim, rounds: int, delta: float, accountant: str) -> Claim:
  """Returns the claim, for a truncated cohort if overflow would add too much to delta.

  Raises:
    IncompatibleStages: overflow adds too much, and the accountant has no event for truncation.
  """
  tau = poisson.overflow(made.sampling, rounds) if made.overflow_counts else 0.0
  if tau == 0:
    return made
  most = poisson.SHARE * delta
  if 2 * tau <= most and made.added_delta(rounds, made.epsilon(rounds, delta)) <= most:
    return made
  rows = made.sampling.capacity if made.sampling else 0
  cut = dataclasses.replace(made, accountant='pld', truncated=True)
  by_draw = made.mechanism.amplified(made.sampling, made.adjacency)
  if accountant != 'rdp' and by_draw and _holds(cut, rounds):
    return cut
  raise events.refuse(
    made.sampling,
    made.mechanism,
    f'a Poisson cohort overflows its {rows} rows too often (probability {tau:.2g}'
    f' in {rounds} rounds at δ = {delta:g}); give it more rows, or use the accountant '
    "'pld' where the noise is Gaussian",
  )


def epsilon(
  sampling: Draws | None,
  mechanism: Mechanism,
  rounds: int,
  delta: float,
  **how: Unpack[ClaimOptions],
) -> Guarantee:
  """Returns the guarantee after `rounds` rounds; `how` as in `claim`.

  >>> from fedjax_mem.core import Draws
  >>> from fedjax_mem.mechanisms import Gaussian
  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> str(epsilon(sampling, Gaussian(1.2), rounds=100, delta=1e-5))[:27]
  'ε = 1.707 at δ = 1e-05 afte'
  """
  made = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  return made.guarantee(rounds, delta)


def trajectory(
  sampling: Draws | None,
  mechanism: Mechanism,
  rounds: int,
  delta: float,
  **how: Unpack[ClaimOptions],
) -> Trajectory:
  """Returns epsilon after each round; `how` as in `claim`.

  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> path = trajectory(sampling, fm.mechanisms.Gaussian(1.2), rounds=100, delta=1e-5)
  >>> path.epsilon.shape, path.epsilon[[0, 9, 99]].round(2).tolist()
  ((100,), [0.45, 0.79, 1.71])
  """
  made = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  return made.trajectory(rounds, delta)
