"""Noise as an object: all that anyone asks of a mechanism.

A side that adds noise states it in its `Noises`; whatever draws it asks `draw`, whoever accounts
for it asks `event`. A mechanism is a frozen subclass, one file in `mechanisms/` or anywhere else;
nobody knows one by its name.
"""

import dataclasses
import math
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
    noise_multiplier: size of the noise over the norm bound of one contribution.
    norm: which norm of a contribution it is scaled to: 'l1', 'l2' or 'linf', or several of them.
    integers: whether it is noise for integers.
    correlated: whether the noise of a round depends on that of earlier ones, so that it is one
      release over rounds: the bound must then be the same in all of them.
    amplifies: schemes of sampling for which `event` claims amplification.
    doubled_by: accountants that double the noise's sensitivity under 'replace_one' by themselves.
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
    """Rounds between two participations of a client that it assumes."""
    return 1

  @property
  def carriers(self) -> int | None:
    """The fewest clients that bring the noise in shares; None: it is drawn at once.

    Where fewer arrive there is less noise than is accounted: their side states `Withholds` of as
    many.
    """
    return None

  @property
  def carried(self) -> bool:
    """Whether clients bring the noise: where one is missing, its share is missing too."""
    return self.carriers is not None

  def with_multiplier(self, noise_multiplier: float) -> Self:
    """Returns the same noise of another size."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def check(self, bound: Bound, like: Tree) -> None:
    """Raises `ValueError` for a bound or shapes for which it would not be what it is said to be."""

  # What it costs. `draws` is a `Draws`, or None: noise of a client's own, which hides what the
  # client holds, and not that it took part.

  def adjacencies(self, draws: Any) -> tuple[str, ...]:
    """Returns the neighbours that it can be accounted for, the default first."""
    poisson = draws is not None and draws.scheme == 'poisson' and draws.min_sep == 1
    removed = ('add_or_remove_one',) if poisson and not self.carried else ()
    if removed and 'poisson' in self.amplifies and not self.correlated:
      return (*removed, 'replace_special', 'replace_one')
    apart = draws is not None and (draws.scheme == 'cyclic' or draws.min_sep > 1)
    # Where nothing is claimed of the draw, a place in it is not worth hiding.
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
    """Returns the most rounds that it covers, or None where there is no end."""
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
      draws: what the sampler did.
      adjacency: one of those of `adjacencies`.
      accountant: 'rdp' or 'pld'. They differ under 'replace_one', where a sum moves by 2 C.
      rounds: that ran, at least 1.
      bound: that the noise is scaled to; noise on integers costs by it.
      truncated: account a Poisson cohort that is cut to its capacity as such.

    Raises:
      ValueError: no such event, with the reason.
    """
    import dp_accounting

    moves = self.moves(adjacency, accountant)
    apart = 1 if draws is None else draws.min_sep
    one = self.once(moves, bound)
    if self.amplified(draws, adjacency):
      one = self.cut(draws, moves) if truncated else _sampled(draws, one)
    return dp_accounting.SelfComposedDpEvent(one, math.ceil(rounds / apart))

  def moves(self, adjacency: str, accountant: str) -> int:
    """Returns by how many bounds a neighbour moves the sum, where the accountant asks for that."""
    return 2 if adjacency == 'replace_one' and accountant not in self.doubled_by else 1

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    raise NotImplementedError(f'{type(self).__name__} must say what a round costs (once or event)')

  def cut(self, draws: Any, moves: int) -> Any:
    """Returns the event of one round with a Poisson cohort that is cut to its capacity.

    Raises:
      NotImplementedError: there is none.
    """
    raise NotImplementedError(f'{type(self).__name__} has no event for a cohort that is cut.')

  # The noise itself.

  def init(self, like: Tree) -> Tree:
    """Returns the state before the first round, for noise of the shapes of `like`."""
    del like
    return ()

  def draw(self, key: Any, like: Tree, bound: Bound, state: Tree) -> tuple[Tree, Tree]:
    """Returns (noise of the shapes of `like`, state): float32, or int32 if it is for integers.

    Where clients carry it, of one of them.

    Args:
      key: of this use alone.
      like: arrays or shapes.
      bound: of one contribution.
      state: from `init`, or from the round before.
    """
    raise NotImplementedError(f'{type(self).__name__} must say how it is drawn (draw).')


def _sampled(draws: Any, event: Any) -> Any:
  """Returns the event of a round whose cohort is drawn."""
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
  """Returns 'package.module:Class', by which a ledger finds it again."""
  return f'{type(mechanism).__module__}:{type(mechanism).__qualname__}'
