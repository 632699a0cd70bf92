"""Facts: what a side of a layer promises, as plain data.

Without a fact the property is unknown, and the round is refused wherever a guarantee needs it. A
fact is stated on the side that it describes, so replacing the side drops the fact; a wrapper that
keeps the promise states it again: `Stage(apply, init, facts=inner.facts)`. A fact is found by its
exact type, at most once a side. Research code may add facts of its own, with a `check`.
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
    sides: the sides on which it may be stated; on any other it is refused.
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
  """This select side draws the cohort, by a law that the accountant may know.

  Attributes:
    scheme: 'poisson' (each client independently, with the same probability), 'without_replacement'
      (uniform, of fixed size), or any other word, for which no amplification is claimed.
    population: N, clients.
    expected: clients expected in a cohort (C, or N times the sampling rate).
    capacity: rows of a cohort; a larger Poisson cohort is cut to it, uniformly at random.
    min_sep: a client that takes part in round t takes part again in round t + min_sep at the
      earliest; 1 allows every round.
  """

  sides = ('select',)
  scheme: str
  population: int
  expected: float
  capacity: int
  min_sep: int = 1


@dataclasses.dataclass(frozen=True)
class Looks(Fact):
  """What data this select side depends on, besides randomness and public numbers.

  Attributes:
    at: 'nothing' (then it gets no table of client states); 'own data', if whether a client is
      selected depends on the data of that client only; or "others' data".
    public: what it takes as public though it comes from clients' data, such as 'the number of
      examples of each client'; every guarantee of the run says so. Empty: nothing.
  """

  sides = ('select',)
  at: str
  public: str = ''

  def __post_init__(self) -> None:
    """Raises `ValueError` unless `at` is one of `LOOKS`."""
    if self.at not in LOOKS:
      raise ValueError(f'at must be one of {LOOKS!r}, got {self.at!r}.')


@dataclasses.dataclass(frozen=True)
class Trains(Fact):
  """This client side trains: it turns a `Task` into a `Message`.

  The server side of its layer turns the aggregate into parameters.
  """

  sides = ('client',)


@dataclasses.dataclass(frozen=True)
class Prepares(Fact):
  """This client side turns a `Task` into a `Task`: its layer comes before the algorithm.

  Attributes:
    by_example: whether it changes each example by itself, without regard to the client's other
      examples, and the parameters without regard to any. Noise by example needs that.
  """

  sides = ('client',)
  by_example: bool = False


@dataclasses.dataclass(frozen=True)
class Bounds(Fact):
  """How this side changes the bound of what one client can change.

  Every side on the path from a clip to the sum, and from there to the noise, must state it; a side
  that does not leaves the bound unknown. The bound is that of one message in the form that leaves
  the side: of the code where a client side encodes, of what is decoded on a server side.

  A side that multiplies each message (or on the server the sum) by 0.5 states

  >>> Bounds(lambda ctx, bound: bound.scaled(0.5)).of(None, Bound(l2=1.0, rows=1)).l2
  0.5

  Attributes:
    of: (ctx, `Bound` of what enters) -> `Bound` of what leaves. `ctx` has what is public on every
      side: spec, server_state, params and round. In the plan all but the spec are `IN_ROUND`, in a
      round they are arrays. Only a cohort side may change `rows`.
    why: where a norm is left unknown, the reason as a clause, for error messages.
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
  """This side adds noise, scaled to what one client can change in what the side receives.

  The side gets that bound as `ctx.bound`. Noise on the algorithm's client side is noise inside of
  training, and clips what it is added to itself.

  Attributes:
    mechanism: the noise.
    trust: 'central' (the sum is protected: the server adds noise to it, or clients add shares of
      the noise, under a mask) or 'local' (each client adds noise to its own message).
    unit: what neighbouring data sets differ in: a 'client' or an 'example'.
    draws: for the unit 'example': examples of the largest client -> how its batches are drawn.
    steps: for local noise: noised releases in one participation.
  """

  sides = ('client', 'server')
  mechanism: Mechanism
  trust: str = 'central'
  unit: str = 'client'
  draws: Callable[[int], Draws] | None = None
  steps: int = 1

  def __post_init__(self) -> None:
    """Raises `ValueError` for an attribute that is out of range, or two that contradict."""
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
  """This side works on weighted messages: its layer comes after the weighing."""

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
  """This client side multiplies update and aux by the client's weight; exactly one does in a round.

  Under noise it also states `Bounds`: how the weight changes a bound.

  Attributes:
    divisor: what the server divides the sum by: None (the sum of the weights that arrived), or a
      fixed number, under privacy the expected cohort.
    alike: whether every client that takes part has the weight 1.
    of: the message's weight -> the weight used, both float32; 0 must stay 0. None: it depends on
      more than the message's weight.
    total: the weights of all clients together, where `of` does not tell them; None: not known.
  """

  sides = ('client',)
  divisor: float | None = None
  alike: bool = False
  of: Callable[[Any], Any] | None = None
  total: float | None = None


@dataclasses.dataclass(frozen=True)
class Encodes(Fact):
  """This side encodes: what leaves it stands for a code, whose bytes are counted.

  A later side must not change it, since no code would stand for the result.

  Attributes:
    codec: an object with `name`, the method's; `adds`, whether decoding the sum of codes gives the
      sum of the decoded updates (if so, the side passes on the code, else the decoded update); and
      `feedback`, why error feedback with it would diverge, or None.
  """

  sides = ('client', 'cohort')
  codec: Any


@dataclasses.dataclass(frozen=True)
class Integers(Fact):
  """What leaves this client side are int32, summed modulo 2 ** bits.

  Attributes:
    bits: bits of a value of the sum.
    clients: the most clients whose sum fits.
  """

  sides = ('client',)
  bits: int
  clients: int


@dataclasses.dataclass(frozen=True)
class Masks(Fact):
  """This client side masks integers modulo 2 ** bits: from here on only their sum can be seen.

  Attributes:
    bits: bits of a value of the sum of updates; those of weight and aux have 32.
    bare: the same layer without the masks, for a round whose messages a protocol masks: its client
      side leaves the int32 that would be masked, and its server side takes their sum modulo
      2 ** 32. It states the same facts, since the server of such a round, too, sees only the sum.
      None: the layer has no such form.
  """

  sides = ('client',)
  bits: int
  bare: 'Layer | None' = None


@dataclasses.dataclass(frozen=True)
class Withholds(Fact):
  """The sum is not released unless so many clients arrive, such as those that add its noise.

  Where fewer arrive, parameters, client states and the states of server sides stay as they were,
  and the metric `<layer>/withheld` is 1 instead of 0.

  Attributes:
    least: clients that must arrive.
  """

  sides = ('client',)
  least: int


@dataclasses.dataclass(frozen=True)
class Pools(Fact):
  """The messages of this training side can be summed as one sum over all clients' examples.

  The round is then pooled (`engine/pooled.py`), if only this layer and the weighing have a client,
  cohort or server side, and neither has a cohort side.

  Attributes:
    find: (`Shape` of the population, shapes of the parameters, shapes of a batch) -> a `Pool`, the
      function that computes the sum; None: not with these shapes.
  """

  sides = ('client',)
  find: Callable[[Any, Any, dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Rule(Weighted):
  """This cohort side is a robust rule, on weighted messages.

  Attributes:
    least: the fewest rows that it works with.
    why: that condition in words, for error messages.
    rows: rows that enter -> rows that leave.
    by_coordinate: whether each coordinate of the result depends only on the same coordinate of the
      rows, so that coordinates may be divided among devices.
  """

  sides = ('cohort',)
  least: int = 1
  why: str = 'C >= 1'
  rows: Callable[[int], int] = lambda clients: clients
  by_coordinate: bool = False


@dataclasses.dataclass(frozen=True)
class Attacks(Weighted):
  """This cohort side is what byzantine clients do, not the server; it comes after the weighing.

  If what each of them sends depends on no other client, it also states `Bounds` that keep `rows`.
  """

  sides = ('cohort',)


@dataclasses.dataclass(frozen=True)
class Scores(Fact):
  """This client side has an aim of its own, such as a backdoor, measured on test examples.

  Attributes:
    measure: (model, params, batch) -> (successes [B], tries [B]), float32.
  """

  sides = ('client',)
  measure: Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Broadcasts(Fact):
  """This client side reads its layer's server state, which is sent down beside the parameters.

  Attributes:
    copies: how much of it, in the size of the parameters.
  """

  sides = ('client',)
  copies: int


@dataclasses.dataclass(frozen=True)
class Personal(Fact):
  """This client side keeps a part of the parameters in its clients' states, which is never sent.

  The server's parameters hold what a client starts from.

  Attributes:
    sent: parameters -> those that are sent, a tree of fewer leaves.
    mean: (parameters, client states [N, ...]) -> parameters with the mean over the clients that
      have taken part, for scores and exports.
    of: (parameters as from `mean`, client states [N, ...], client) -> the client's own.
  """

  sides = ('client',)
  sent: Callable[[Any], Any]
  mean: Callable[[Any, Any], Any]
  of: Callable[[Any, Any, Any], Any]

  def check(self, round: 'Round', layer: 'Layer') -> None:
    """Raises `IncompatibleStages` where a mean of what clients keep must not be seen."""
    from fedjax_mem.core.layer import IncompatibleStages  # which is written with facts

    for there, how in ((round.claims, 'noise covers'), (round.having(Masks), 'mask hides')):
      if there:
        raise IncompatibleStages(
          f'{layer.name!r} keeps statistics with each client (model.statistics), and scores and '
          f"exports would show their mean, which no {how}: use 'average', or GroupNorm."
        )


@dataclasses.dataclass(frozen=True)
class Rescales(Fact):
  """This client side multiplies weighted messages by a number of its client, such as 1 / chance."""

  sides = ('client',)


# The facts that describe what a side does to messages. A client or cohort side after the algorithm
# without any of them is `silent`: refused wherever that has to be known.
MESSAGE_FACTS = (Trains, Bounds, Noises, Weighs, Encodes, Integers, Masks, Rule, Attacks)
