"""Epsilon of several runs on the same clients, such as the lanes of a sweep, released together.

Each run's own statement holds if nothing else is known of its clients' data. Who sees all of them
sees the composition of their releases.
"""

from collections.abc import Sequence
from typing import Any

from fedjax_mem.account import curves, events
from fedjax_mem.account.accountant import check_delta
from fedjax_mem.account.claims import Claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.core import IncompatibleStages

# PLD's curve of an event takes about a second: more different ones are composed by RDP, if it can.
_FEW = 4


def together(releases: Sequence[tuple[Claim, int]], delta: float) -> Guarantee:
  """Returns the guarantee of all releases together, each a claim and its rounds.

  By RDP, whose divergences add, or by PLD, whichever bounds epsilon lower. The runs may depend on
  each other's outputs. Statements of one unit, trust and adjacency compose; the clients of all runs
  are taken for the same, each with all that it holds in any of them.

  Reference: Mironov (2017), arXiv 1702.07476, Proposition 1.

  >>> mechanism = fm.mechanisms.Gaussian(1.0)
  >>> one = fm.account.claim(None, mechanism, rounds=10, delta=1e-5)
  >>> alone, twice = one.guarantee(20, 1e-5), together([(one, 10)] * 2, 1e-5)
  >>> abs(alone.epsilon - twice.epsilon) < 1e-3
  True

  Args:
    releases: at least one; those of no rounds are left out.
    delta: target, in (0, 1); what overflowing cohorts add to it is in the result.

  Raises:
    ValueError: no release, or delta out of range.
    IncompatibleStages: claims of different adjacencies, units or trust, or no accountant has events
      for all of them.
  """
  check_delta(delta)
  made = [(claim, rounds) for claim, rounds in releases if rounds]
  if not made:
    raise ValueError('releases must be at least one of at least one round, got none.')
  kinds = {(claim.adjacency, claim.unit, claim.trust) for claim, _ in made}
  if len(kinds) > 1:
    raise IncompatibleStages(
      f'runs compose if their claims are of one adjacency, unit and trust, got {sorted(kinds)!r}.'
    )
  found: dict[str, float] = {}
  for name in events.ACCOUNTANTS:
    epsilon = _epsilon(name, made, delta, last=not found)
    if epsilon is not None:
      found[name] = epsilon
  if not found:
    raise IncompatibleStages('no accountant has events for all of these runs together.')
  name = min(found, key=lambda x: found[x])
  added = sum(claim.added_delta(rounds, found[name]) for claim, rounds in made)
  first = made[0][0].stated(found[name], min(1.0, delta + added), sum(r for _, r in made))
  notes = dict.fromkeys(note for claim, _ in made for note in claim.notes)
  return first._replace(accountant=name.upper(), notes=tuple(notes))


def _epsilon(
  name: str, made: Sequence[tuple[Claim, int]], delta: float, last: bool
) -> float | None:
  """Returns epsilon by one accountant; None if it does not support all events.

  Args:
    name: 'rdp' or 'pld'.
    made: the releases.
    delta: target, without overflow.
    last: whether no other accountant is left: work is then no reason against it.
  """
  counts: list[tuple[Any, int]] = []
  adjacency = made[0][0].adjacency
  for claim, rounds in made:
    try:
      event, count = events.build(
        claim.sampling, claim.mechanism, adjacency, name, rounds, claim.bound, claim.truncated
      )
    except ValueError:  # `IncompatibleStages` is one
      return None
    for i, (other, before) in enumerate(counts):
      if other == event:
        counts[i] = (event, before + count)
        break
    else:
      counts.append((event, count))
  if not all(curves.supports(name, event, adjacency) for event, _ in counts):
    return None
  if name == 'pld':
    wanted = last or len(counts) <= _FEW
    return curves.pld_of_several(counts, adjacency, delta) if wanted else None
  own = [set(x.mechanism.orders) for x, _ in made if x.mechanism.orders is not None]
  orders = tuple(sorted(set.intersection(*own))) if own else None
  return curves.rdp_of_several(counts, adjacency, delta, orders)
