"""What a side of a layer promises; no fact: unknown, and refused wherever a guarantee needs it.

A fact stands on the side that it speaks of, so that who replaces the side loses it. A wrapper that
keeps a promise repeats it in the open: `Stage(apply, init, facts=inner.facts)`. A fact is found by
its exact type, once a side. Research code adds facts of its own, with a `check`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from fedjax_mem.core import validate
from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism

if TYPE_CHECKING:
  from fedjax_mem.core.layer import Layer
  from fedjax_mem.core.round import Round

SIDES = ('select', 'client', 'cohort', 'server')
TRUSTS = ('central', 'local')
UNITS = ('client', 'example')
LOOKS = ('nothing', 'own data', "others' data")


@dataclasses.dataclass(frozen=True)
class Fact:
  """A promise of one side.

  Attributes:
    sides: on which it means something; on any other it is refused.
  """

  sides: ClassVar[tuple[str, ...]] = SIDES

  def check(self, round: 'Round', layer: 'Layer') -> None:
    """Raises `IncompatibleStages` where the rest of the round breaks the promise.

    Args:
      round: all layers.
      layer: the one whose side states this.
    """


@dataclasses.dataclass(frozen=True)
class Draws(Fact):
  """This select side draws the cohort, by a law that the accountant may know: plain data.

  Attributes:
    scheme: 'poisson' (independent inclusion), 'without_replacement' (uniform, of fixed size), or
      any other word, which amplifies nothing.
    population: N, clients.
    expected: clients expected in a cohort (C, or N times the rate).
    capacity: rows of a cohort; a Poisson cohort beyond it is cut uniformly.
    min_sep: rounds between two participations of a client at the least.
  """

  sides = ('select',)
  scheme: str
  population: int
  expected: float
  capacity: int
  min_sep: int = 1


@dataclasses.dataclass(frozen=True)
class Looks(Fact):
  """What a select side depends on, besides randomness and public numbers.

  Attributes:
    at: 'nothing' (then it is given no table), 'own data' of a client, or "others' data".
  """

  sides = ('select',)
  at: str

  def __post_init__(self) -> None:
    """Raises `ValueError` for another word."""
    if self.at not in LOOKS:
      raise ValueError(f'at must be one of {LOOKS!r}, got {self.at!r}.')


@dataclasses.dataclass(frozen=True)
class Trains(Fact):
  """This client side turns a `Task` into a `Message`; its server side gives parameters."""

  sides = ('client',)


@dataclasses.dataclass(frozen=True)
class Prepares(Fact):
  """This client side takes and gives a `Task`: its layer stands before the algorithm.

  Attributes:
    by_example: whether what it makes of an example depends on no other example of the client, and
      the parameters that it gives on none at all. Noise by example needs that.
  """

  sides = ('client',)
  by_example: bool = False


@dataclasses.dataclass(frozen=True)
class Bounds(Fact):
  """What this side makes of the bound of what one client can change.

  Every side on the path from a clip out to the sum, and back to the noise, states it; one that does
  not leaves everything unknown. It speaks of one message as it is on that side: on a client side
  that encodes, of the code; on a server side, of what is decoded.

  Attributes:
    of: (ctx, `Bound` of what enters) -> `Bound` of what leaves. `ctx` holds what is public on every
      side: spec, server_state, params and round. Where the plan asks, all but the spec are
      `IN_ROUND`; in the round they are arrays. Only a cohort side may change `rows`.
    why: where a norm is left unknown, the reason, a clause.

  >>> Bounds(lambda ctx, bound: bound.scaled(0.5)).of(None, Bound(l2=1.0, rows=1)).l2
  0.5

  That is what a side states that multiplies each message by 0.5, or a server side the sum.
  """

  sides = ('client', 'cohort', 'server')
  of: Callable[[Any, Bound], Bound]
  why: str = ''

  def __post_init__(self) -> None:
    """Raises `ValueError` unless `of` takes a context and a bound."""
    validate.function(of=self.of)
    try:
      inspect.signature(self.of).bind(None, None)
    except TypeError as error:
      raise ValueError(f'of must take (ctx, bound), got a function with {error}.') from error


@dataclasses.dataclass(frozen=True)
class Noises(Fact):
  """This side adds a mechanism's noise, scaled to what one client can change in what it receives.

  That is `ctx.bound` there. On the algorithm's client side it is noise inside of training, which
  bounds what it noises itself.

  Attributes:
    mechanism: which noise.
    trust: 'central' (what protects is the noise in the sum; from a client side, its shares, under a
      mask) or 'local' (each client noises its own message).
    unit: what one neighbour is: a 'client' or an 'example'.
    draws: by example: examples of the largest client -> how a batch of it is drawn.
    steps: of local noise: noised releases a participation.
  """

  sides = ('client', 'server')
  mechanism: Mechanism
  trust: str = 'central'
  unit: str = 'client'
  draws: Callable[[int], Draws] | None = None
  steps: int = 1

  def __post_init__(self) -> None:
    """Raises `ValueError` for what is no mechanism, or for another word."""
    if not isinstance(self.mechanism, Mechanism):
      raise ValueError(f'mechanism must be a Mechanism, got {self.mechanism!r}.')
    validate.one_of(TRUSTS, trust=self.trust)
    validate.one_of(UNITS, unit=self.unit)
    validate.integer(steps=self.steps)
    if self.trust == 'central' and (self.steps, self.unit) != (1, 'client'):
      raise ValueError(
        f"steps must be 1, and the unit 'client', of central noise, got {self.steps!r} by "
        f'{self.unit}.'
      )
    if (self.draws is None) != (self.unit == 'client'):
      raise ValueError(f"draws must be given for the unit 'example' alone, got {self.draws!r}.")


@dataclasses.dataclass(frozen=True)
class Weighted(Fact):
  """This side works on messages that are weighted: its layer comes after the weighing."""

  sides: ClassVar[tuple[str, ...]] = ('client', 'cohort')

  def check(self, round: 'Round', layer: 'Layer') -> None:
    """Raises `IncompatibleStages` for a layer that comes before the weighing."""
    from fedjax_mem.core.layer import IncompatibleStages  # which is written with facts

    if layer not in round.after(round.weighing):
      raise IncompatibleStages(
        f'{layer.name!r} works on weighted messages: it must come after {round.weighing.name!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Weighs(Fact):
  """This client side makes update and aux those of `of(weight)` clients; exactly one in a round.

  Under noise it also states `Bounds`: what a client's weight makes of a bound.

  Attributes:
    divisor: what the server divides the sum by: None (the weights that arrived), or a fixed number,
      under privacy the expected cohort.
    alike: whether everyone who takes part has the weight 1.
    of: the message's weight -> the weight used, both float32; 0 must stay 0. None: it depends on
      more than the message's weight.
  """

  sides = ('client',)
  divisor: float | None = None
  alike: bool = False
  of: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Encodes(Fact):
  """What leaves this side stands for a code, whose bytes are counted: whoever changes it breaks it.

  Attributes:
    codec: with `name` of the method; `adds`, whether the decoded sum of codes is the sum of what
      is decoded (then the code itself leaves, else what the server will decode); `feedback`, why
      error feedback would diverge, or None.
  """

  sides = ('client', 'cohort')
  codec: Any


@dataclasses.dataclass(frozen=True)
class Integers(Fact):
  """What leaves this client side are int32, summed modulo 2 ** bits.

  Attributes:
    bits: of a value of the sum.
    clients: the most clients whose sum has room.
  """

  sides = ('client',)
  bits: int
  clients: int


@dataclasses.dataclass(frozen=True)
class Masks(Fact):
  """From this client side on, messages modulo 2 ** bits are seen as a sum only."""

  sides = ('client',)
  bits: int


@dataclasses.dataclass(frozen=True)
class Withholds(Fact):
  """This client side brings what the sum needs of at least so many clients, such as noise.

  Where fewer arrive, nothing of the sum is released: parameters, client states and those of server
  sides stay as they were. The metric `<layer>/withheld` tells it, 0 or 1.

  Attributes:
    least: clients that must arrive.
  """

  sides = ('client',)
  least: int


@dataclasses.dataclass(frozen=True)
class Pools(Fact):
  """The sum over clients of what this training side sends is one sum over all their examples.

  A round is pooled if no layer but this one and the weighing has a client, cohort or server side,
  and these two no cohort side.

  Attributes:
    find: (`Shape` of the population, shapes of the parameters, shapes of a batch) -> how to sum
      over all examples of many clients at once, a `Pool`; None: it is no such sum there.
  """

  sides = ('client',)
  find: Callable[[Any, Any, dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Rule(Weighted):
  """This cohort side is a robust rule, on weighted messages.

  Attributes:
    least: rows that it needs.
    why: that condition in words, for messages.
    rows: rows that enter -> rows that leave.
    by_coordinate: whether a coordinate of the result depends on that coordinate alone, so that
      coordinates may be divided among devices.
  """

  sides = ('cohort',)
  least: int = 1
  why: str = 'C >= 1'
  rows: Callable[[int], int] = lambda clients: clients
  by_coordinate: bool = False


@dataclasses.dataclass(frozen=True)
class Attacks(Weighted):
  """This cohort side stands for clients that lie, not for the server; it comes after the weighing.

  Where what one of them sends depends on no other client, it states `Bounds` that keep the rows.
  """

  sides = ('cohort',)


@dataclasses.dataclass(frozen=True)
class Scores(Fact):
  """How far this client side has come with what it wants, measured on test examples.

  Attributes:
    measure: (model, params, batch) -> (successes [B], tries [B]), float32.
  """

  sides = ('client',)
  measure: Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]]


# What says what a side does to messages; a side after the algorithm without any states nothing.
MESSAGE_FACTS = (Trains, Bounds, Noises, Weighs, Encodes, Integers, Masks, Rule, Attacks)
