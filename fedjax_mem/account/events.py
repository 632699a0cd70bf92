"""Events: which pairs of a sampler and a mechanism can be accounted for, and under which adjacency.

The mechanism makes the event, and decides which amplification it claims (`core/mechanism.py`); a
pair without an event is refused. Without amplification a client is accounted for as if it took part
whenever it may. That is sound because the draw does not depend on the clients' data: divergences
are jointly quasi-convex, so the mixture over cohorts is no worse than its worst cohort.

Adjacencies:
  'add_or_remove_one': one client more or less; the sum moves by C.
  'replace_one': one client's data are replaced by any other; the sum moves by 2 C.
  'replace_special': one client's contributions become zero, but its place in the draw stays; the
    sum moves by C.

A draw of None means noise that each client adds to its own message. It hides the client's data, but
not that the client takes part.
"""

from typing import Any

from fedjax_mem.core import Draws, IncompatibleStages, Mechanism, validate
from fedjax_mem.core.bound import Bound

ADJACENCIES = ('add_or_remove_one', 'replace_one', 'replace_special')
ACCOUNTANTS = ('rdp', 'pld')
SCHEMES = ('poisson', 'without_replacement', 'cyclic')


def refuse(sampling: Draws | None, mechanism: Mechanism, reason: Any) -> IncompatibleStages:
  """Returns the error that says why a sampler and a mechanism cannot be accounted together."""
  scheme = "a client's own noise" if sampling is None else f'sampling {sampling.scheme!r}'
  return IncompatibleStages(
    f'{scheme} and {type(mechanism).__name__} noise cannot be accounted together: {reason}.'
  )


def check(sampling: Draws | None, mechanism: Mechanism) -> None:
  """Raises for a sampling that cannot be accounted for with any mechanism.

  Raises:
    ValueError: a size is out of range (a rate over 1, an empty cohort).
    IncompatibleStages: the draw depends on data.
  """
  if sampling is None:
    return
  validate.integer(population=sampling.population)
  validate.positive(expected=sampling.expected)
  if sampling.expected > sampling.population * (1 + 1e-12):
    raise ValueError(
      f'expected must be at most the population of {sampling.population} (a sampling rate of at '
      f'most 1), got {sampling.expected!r}.'
    )
  validate.integer(capacity=sampling.capacity)
  validate.integer(min_sep=sampling.min_sep)
  if sampling.scheme == 'data_dependent':
    raise refuse(sampling, mechanism, 'who is selected would itself reveal data')
  if sampling.scheme in SCHEMES[1:] and sampling.expected != int(sampling.expected):
    raise ValueError(f'expected must be a whole number, got {sampling.expected!r}.')


def check_adjacency(sampling: Draws | None, mechanism: Mechanism, adjacency: str) -> None:
  """Raises `IncompatibleStages` for an adjacency under which the pair gives no guarantee."""
  validate.one_of(ADJACENCIES, adjacency=adjacency)
  held = mechanism.adjacencies(sampling)
  if adjacency not in held:
    raise refuse(
      sampling,
      mechanism,
      f'adjacency {adjacency!r} does not hold, as {_why_not(sampling, mechanism)}; use '
      f'{" or ".join(map(repr, sorted(held)))}',
    )


def _why_not(sampling: Draws | None, mechanism: Mechanism) -> str:
  """Returns why 'add_or_remove_one' does not hold."""
  if sampling is None:
    return 'a client cannot hide that it took part, only what it holds'
  if mechanism.carried:
    return 'a client less is a share of the noise less'
  if sampling.scheme == 'without_replacement':
    return 'a cohort of fixed size without a client holds another in its place'
  if sampling.scheme == 'cyclic' or sampling.min_sep > 1:
    return 'a client more or less moves the turns of all others'
  return 'nobody states what the draw makes of a client more or less'


def build(
  sampling: Draws | None,
  mechanism: Mechanism,
  adjacency: str,
  accountant: str,
  rounds: int,
  bound: Bound | None = None,
  truncated: bool = False,
) -> tuple[Any, int]:
  """Returns an event, and how often it is composed in `rounds` rounds.

  Args:
    sampling: how the cohort is drawn; None: noise that each client adds to its own message.
    mechanism: the noise.
    adjacency: one of `ADJACENCIES`.
    accountant: 'rdp' or 'pld'.
    rounds: rounds that ran, at least 1.
    bound: the bound that the noise is scaled to.
    truncated: account for a Poisson cohort as cut to its capacity, instead of adding the
      probability of overflow to delta.

  Raises:
    IncompatibleStages: there is no valid event.
  """
  import dp_accounting

  check(sampling, mechanism)
  check_adjacency(sampling, mechanism, adjacency)
  try:
    event = mechanism.event(sampling, adjacency, accountant, rounds, bound, truncated)
  except (ValueError, NotImplementedError) as error:
    raise refuse(sampling, mechanism, error) from error
  if isinstance(event, dp_accounting.SelfComposedDpEvent):
    return event.event, event.count
  return event, 1
