"""Mechanism: a kind of noise as one object, which says how it is drawn and what it costs.

A side that adds noise states its mechanism in `Noises`. The side calls `draw`; the accountant calls
`event`. A mechanism is a frozen subclass, in a file of `mechanisms/` or anywhere else; no other
module depends on which one it is.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

from fedjax_mem.core import validate
from fedjax_mem.core.bound import Bound
from fedjax_mem.core.tree import Tree


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """Noise added in a round, relative to what one client (or example) can change.

  The multiplier is relative to the add-or-remove-one sensitivity, which is the norm bound C itself:
  the accountant doubles the sensitivity where one client is replaced by another.

  Attributes:
    noise_multiplier: size of the noise over the norm bound of one contribution, > 0.
    norm: the norm of a contribution that the noise is scaled to, 'l1', 'l2' or 'linf', or several.
    integers: whether it is noise for integers.
    correlated: whether the noise of a round depends on that of earlier rounds. All rounds are then
      one release, and the bound must be the same in all of them.
    amplifies: sampling schemes for which `event` claims amplification.
    doubled_by: accountants that double the sensitivity under 'replace_one' themselves.
    orders: the Renyi orders for which its event holds; None: all.
  """

  noise_multiplier: float
  norm: ClassVar[str | tuple[str, ...]] = 'l2'
  integers: ClassVar[bool] = False
  correlated: ClassVar[bool] = False
  amplifies: ClassVar[tuple[str, ...]] = ()
  doubled_by: ClassVar[tuple[str, ...]] = ()
  orders: ClassVar[tuple[int, ...] | None] = None

  def __post_init__(self) -> None:
    """Raises `ValueError` for a multiplier that is not > 0."""
    validate.positive(noise_multiplier=self.noise_multiplier)

  @property
  def norms(self) -> tuple[str, ...]:
    """The norms of a contribution that must be bounded."""
    return (self.norm,) if isinstance(self.norm, str) else self.norm

  @property
  def min_sep(self) -> int:
    """The least number of rounds between two participations of a client that it assumes."""
    return 1

  @property
  def carriers(self) -> int | None:
    """The fewest clients that add the noise in shares; None: it is drawn at once.

    If fewer arrive there is less noise than is accounted for, so their side must state `Withholds`
    of at least this number.
    """
    return None

  @property
  def carried(self) -> bool:
    """Whether clients add the noise in shares: where a client is missing, so is its share."""
    return self.carriers is not None

  def with_multiplier(self, noise_multiplier: float) -> Self:
    """Returns the same noise of another size."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def check(self, bound: Bound, like: Tree) -> None:
    """Raises `ValueError` for a bound or shapes with which the event would not hold."""

  # The cost of the noise. `draws` is a `Draws`, or None for noise that a client adds to its own
  # message: that hides the client's data, but not that it took part.

  def adjacencies(self, draws: Any) -> tuple[str, ...]:
    """Returns the adjacencies that it can be accounted for, the default first."""
    poisson = draws is not None and draws.scheme == 'poisson' and draws.min_sep == 1
    removed = ('add_or_remove_one',) if poisson and not self.carried else ()
    if removed and 'poisson' in self.amplifies and not self.correlated:
      return (*removed, 'replace_special', 'replace_one')
    apart = draws is not None and (draws.scheme == 'cyclic' or draws.min_sep > 1)
    # No amplification is claimed here, so a client's place in the draw need not be hidden: by
    # default, its contributions become zero and the place stays.
    if apart or poisson or self.correlated:
      return ('replace_special', 'replace_one', *removed)
    return ('replace_one', 'replace_special')

  def amplified(self, draws: Any, adjacency: str) -> bool:
    """Returns whether the event claims amplification by sampling."""
    if self.correlated or draws is None or draws.min_sep > 1:
      return False
    if draws.scheme not in self.amplifies:
      return False
    return draws.scheme == 'poisson' or adjacency == 'replace_one'

  def horizon(self, draws: Any) -> int | None:
    """Returns the most rounds that it covers, or None where there is no limit."""
    del draws
    return None

  def event(
    self,
    draws: Any,
    adjacency: str,
    accountant: str,
    rounds: int,
    bound: Bound | None = None,
    truncated: bool = False,
  ) -> Any:
    """Returns the `dp_accounting` event of `rounds` rounds.

    Args:
      draws: how the cohort is drawn.
      adjacency: one of those of `adjacencies`.
      accountant: 'rdp' or 'pld'. They differ under 'replace_one', where a sum moves by 2 C.
      rounds: number of rounds that ran, at least 1.
      bound: the bound that the noise is scaled to; the cost of noise on integers depends on it.
      truncated: account for a Poisson cohort as one that is cut to its capacity.

    Raises:
      ValueError: there is no such event; the message is the reason.
    """
    import dp_accounting

    moves = self.moves(adjacency, accountant)
    apart = 1 if draws is None else draws.min_sep
    one = self.once(moves, bound)
    # Without amplification a client is accounted for in every round in which it may take part.
    if self.amplified(draws, adjacency):
      one = self.cut(draws, moves) if truncated else _sampled(draws, one)
    return dp_accounting.SelfComposedDpEvent(one, math.ceil(rounds / apart))

  def moves(self, adjacency: str, accountant: str) -> int:
    """Returns by how many bounds a neighbour moves the sum, as the event has to state it."""
    return 2 if adjacency == 'replace_one' and accountant not in self.doubled_by else 1

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    raise NotImplementedError(f'{type(self).__name__} must say what a round costs (once or event)')

  def cut(self, draws: Any, moves: int) -> Any:
    """Returns the event of one round with a Poisson cohort that is cut to its capacity.

    Raises:
      NotImplementedError: no such event is known.
    """
    raise NotImplementedError(f'{type(self).__name__} has no event for a cohort that is cut.')

  # The noise itself.

  def init(self, like: Tree) -> Tree:
    """Returns the state before the first round, for noise of the shapes of `like`."""
    del like
    return ()

  def draw(self, key: Any, like: Tree, bound: Bound, state: Tree) -> tuple[Tree, Tree]:
    """Returns (noise of the shapes of `like`, state): float32, or int32 if it is for integers.

    If clients add the noise in shares, it is one share.

    Args:
      key: a PRNG key that is used for nothing else.
      like: arrays or shapes.
      bound: bound of one contribution.
      state: from `init`, or from the round before.
    """
    raise NotImplementedError(f'{type(self).__name__} must say how it is drawn (draw).')

  def replayed(self, key: Callable[[Any], Any], like: Tree, bound: Bound, rounds: Any) -> Tree:
    """Returns the state after some rounds, drawn again: noise in a state is not kept on the disk.

    Args:
      key: round, from 0 -> the key that `draw` got in it.
      like: as for `draw`.
      bound: as for `draw`, the same in all rounds.
      rounds: int32, rounds done.
    """
    import jax

    again = lambda i, state: self.draw(key(i), like, bound, state)[1]
    state: Tree = jax.lax.fori_loop(0, rounds, again, self.init(like))
    return state


def _sampled(draws: Any, event: Any) -> Any:
  """Returns the event of a round, amplified by the sampling of its cohort."""
  import dp_accounting

  if draws.scheme == 'poisson':
    rate = min(1.0, draws.expected / draws.population)
    return dp_accounting.PoissonSampledDpEvent(rate, event)
  if draws.scheme != 'without_replacement':
    raise NotImplementedError(f'no event is known for a draw by {draws.scheme!r}')
  return dp_accounting.SampledWithoutReplacementDpEvent(
    draws.population, int(draws.expected), event
  )


def path(mechanism: Mechanism) -> str:
  """Returns 'package.module:Class', by which a ledger names the mechanism's class."""
  return f'{type(mechanism).__module__}:{type(mechanism).__qualname__}'
