"""A round: its layers, checked and indexed.

A round is a tuple of layers. It runs in four parts:

1. The server runs the select sides, in order: one draws the cohort, others leave clients out.
2. The layers follow from left to right: each client of the cohort runs their client sides, and a
   cohort side sees the messages of all clients at once.
3. What leaves the last of them is summed over the cohort.
4. The server runs the server sides on the sum, from right to left, so that what the last layer did
   to the messages is undone first.

    draw > drop > [ poison? > train > weigh > attack? > clip > encode > mask ] x C > cohort rules?
         > sum > unmask > decode > noise > divide > step

The algorithm is the layer that trains: on the client it turns a `Task` into a `Message`, on the
server it turns the decoded sum into new parameters. Layers before it work on tasks and parameters,
layers after it on messages.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from fedjax_mem.core.bound import IN_ROUND, Bound, rounding
from fedjax_mem.core.bound import check as check_bound
from fedjax_mem.core.context import Context
from fedjax_mem.core.facts import (
  MESSAGE_FACTS,
  Bounds,
  Draws,
  Fact,
  Looks,
  Noises,
  Prepares,
  Trains,
  Weighs,
)
from fedjax_mem.core.layer import IncompatibleStages, Layer, Stage

F = TypeVar('F', bound=Fact)
_ONCE: dict[str, type[Fact]] = {
  'draw the cohort': Draws,
  'train': Trains,
  'weigh the clients, such as by_examples()': Weighs,
}
PAIRS = (('client', 'cohort'), ('select', 'server'))


class Round(tuple[Layer, ...]):
  """The layers of a round, in order; made by `compose`."""

  def having(self, kind: type[F]) -> tuple[tuple[Layer, str, F], ...]:
    """Returns (layer, side, fact) wherever a fact of this kind is stated, in order."""
    found = ((x, side, stage.fact(kind)) for x in self for side, stage in x.sides.items())
    return tuple((x, side, fact) for x, side, fact in found if fact is not None)

  @functools.cached_property
  def selecting(self) -> tuple[Layer, ...]:
    """The layers with a select side, in order."""
    return tuple(x for x in self if x.select is not None)

  @functools.cached_property
  def drawing(self) -> Layer:
    """The layer that draws the cohort."""
    return self.having(Draws)[0][0]

  @functools.cached_property
  def draws(self) -> Draws:
    """How the cohort is drawn."""
    return self.having(Draws)[0][2]

  @functools.cached_property
  def blind(self) -> bool:
    """Whether later cohorts are known ahead: no select side learns anything from clients."""
    looks = [x.select.fact(Looks) for x in self.selecting]  # type: ignore[union-attr]
    return all(x is not None and x.at == 'nothing' for x in looks) and all(
      x.server is None for x in self.selecting
    )

  @functools.cached_property
  def claims(self) -> bool:
    """Whether some side adds noise (`Noises`), so that privacy is claimed."""
    return bool(self.having(Noises))

  @functools.cached_property
  def caveats(self) -> tuple[str, ...]:
    """What is taken as public though it comes from clients' data, for every guarantee to say."""
    looks = [x.fact(Looks) for x in self.selecting]
    return tuple(f'{x.public} is public' for x in looks if x is not None and x.public)

  @functools.cached_property
  def compensated(self) -> bool:
    """Whether the sum is one of floats that noise has to cover: then its rounding is bounded."""
    noises = ((side, noise) for _, side, noise in self.having(Noises))
    return any(
      side == 'server' and noise.trust == 'central' and not noise.mechanism.integers
      for side, noise in noises
    )

  @functools.cached_property
  def secret(self) -> frozenset[tuple[str, str]]:
    """The (layer's name, side) whose keys come from the secret root.

    These are the sides that add noise, and the draw if some noise on the sum claims amplification
    by it: a cohort that anyone can draw again amplifies nothing.
    """
    noises = self.having(Noises)
    found = {(x.name, side) for x, side, _ in noises}
    for x, side, law in self.having(Draws):
      shared = [noise.mechanism for _, _, noise in noises if noise.trust == 'central']
      if any(law.scheme in mechanism.amplifies for mechanism in shared):
        found.add((x.name, side))
    return frozenset(found)

  @functools.cached_property
  def algorithm(self) -> Layer:
    """The layer that trains."""
    return self.having(Trains)[0][0]

  @functools.cached_property
  def weighing(self) -> Layer:
    """The layer that weighs."""
    return self.having(Weighs)[0][0]

  @functools.cached_property
  def weighs(self) -> Weighs:
    """How clients are weighed."""
    return self.having(Weighs)[0][2]

  def place(self, layer: Layer) -> int:
    """Returns the position of a layer."""
    return [x.name for x in self].index(layer.name)

  def before(self, layer: Layer) -> tuple[Layer, ...]:
    """Returns the layers listed before."""
    return tuple(self[: self.place(layer)])

  def after(self, layer: Layer) -> tuple[Layer, ...]:
    """Returns the layers listed after."""
    return tuple(self[self.place(layer) + 1 :])

  @functools.cached_property
  def path(self) -> tuple[tuple[Layer, str], ...]:
    """The sides that a message meets, in order: to the sum on clients, then back on the server."""
    # A part of a round may have no algorithm: then all its layers work on messages.
    inner = self[self.place(self.algorithm) :] if self.having(Trains) else tuple(self)
    out = [(x, side) for x in inner for side in ('client', 'cohort') if side in x.sides]
    return (*out, *((x, 'server') for x in reversed(inner) if x.server is not None))

  @functools.cached_property
  def silent(self) -> tuple[tuple[Layer, str], ...]:
    """The client and cohort sides that work on messages and state none of `MESSAGE_FACTS`."""
    return tuple(
      (x, side)
      for x, side in self.path
      if side != 'server' and not any(type(f) in MESSAGE_FACTS for f in x.sides[side].facts)
    )

  def bounds(
    self,
    specs: dict[str, Any],
    servers: dict[str, Any] | None = None,
    round: Any = IN_ROUND,
    params: Any = IN_ROUND,
  ) -> Iterator[tuple[Layer, str, Bound]]:
    """Yields (layer, side, `Bound` of what one client can change in what the side receives).

    The bound is composed along `path`, from the `Bounds` that each side states; a side that states
    none leaves it unknown. Before the round the plan asks for it, without server states: bounds
    that depend on them are then `IN_ROUND`.

    Args:
      specs: for each layer, the shapes that its client side receives.
      servers: the server states, within a round; None: they are `IN_ROUND`.
      round: number of the round, within a round.
      params: the server's parameters, within a round.
    """
    bound, summed = Bound(rows=1), False
    # A part of a round, in which nobody draws, is not summed.
    terms = self.draws.capacity if self.compensated and self.having(Draws) else 0
    for layer, side in self.path:
      if side == 'server' and not summed:
        bound, summed = bound.summed(rounding(terms)), True
      yield layer, side, bound
      state = IN_ROUND if servers is None else servers.get(layer.name, IN_ROUND)
      ctx = Context(None, None, round, None, None, params, state, specs.get(layer.name))  # type: ignore[arg-type]
      fact = layer.sides[side].fact(Bounds)
      leaves = Bound() if fact is None else fact.of(ctx, bound)
      check_bound(leaves, f'the {side} side of {layer.name!r}')
      if side == 'server' and terms:
        leaves = leaves.scaled(1 + rounding(terms, after=True))
      # Only a cohort side can mix messages: a client side sees one, and a server side their sum.
      bound = leaves if side == 'cohort' else leaves._replace(rows=bound.rows)

  def bound(self, layer: Layer, side: str, specs: dict[str, Any], **known: Any) -> Bound:
    """Returns what one client can change in what a side receives; `known` as in `bounds`."""
    along = self.bounds(specs, **known)  # lazily: the specs of later sides may not be known yet
    return next(b for x, where, b in along if (x.name, where) == (layer.name, side))


def compose(*parts: Layer | tuple[Layer, ...]) -> Round:
  """Returns the layers of a round, flattened and checked.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2
  >>> train = fm.stages.algorithm.fedavg(loss, learning_rate=0.1, batch_size=10)
  >>> draw = fm.stages.select.uniform(num_clients=100, cohort_size=10)
  >>> layers = compose(draw, train, fm.stages.weigh.by_examples())
  >>> [layer.name for layer in layers], layers.draws.expected
  (['select', 'algorithm', 'weigh'], 10)

  Args:
    *parts: layers, or tuples of layers (a factory may return several).

  Raises:
    ValueError: a part, a side or a fact is of another kind.
    IncompatibleStages: names are not distinct, a fact is stated twice or on a side where it means
      nothing, a state is declared twice, not exactly one layer draws, trains or weighs, or a layer
      is on the wrong side of the algorithm.
  """
  layers = flattened(*parts)
  names = [layer.name for layer in layers]
  for what, kind in _ONCE.items():
    found = [x.name for x, _, _ in layers.having(kind)]
    if len(found) != 1:
      raise IncompatibleStages(
        f'exactly one layer must {what} (state {kind.__name__}), got {found!r} of {names!r}.'
      )
  _check_places(layers)
  return layers


def flattened(*parts: Layer | tuple[Layer, ...]) -> Round:
  """Returns the layers of a part of a round, each checked by itself; see `compose`."""
  listed: list[Any] = []
  for part in parts:
    several = isinstance(part, Iterable) and not isinstance(part, Layer)
    listed += part if several else [part]
  for layer in listed:
    if not isinstance(layer, Layer):
      raise ValueError(f'every part of a round must be a Layer, got {layer!r}.')
  layers = Round(listed)
  names = [layer.name for layer in layers]
  if len(set(names)) < len(names):
    raise IncompatibleStages(f'names of layers must be distinct, got {names!r}.')
  for layer in layers:
    _check_sides(layer)
  return layers


def _check_sides(layer: Layer) -> None:
  """Raises for a fact on a wrong side or stated twice, or a state that is declared twice."""
  for side, stage in layer.sides.items():
    if not isinstance(stage, Stage):
      raise ValueError(f'the {side} side of {layer.name!r} must be a Stage, got {stage!r}.')
    if not isinstance(stage.facts, tuple) or not all(isinstance(x, Fact) for x in stage.facts):
      raise ValueError(
        f'the facts of the {side} side of {layer.name!r} must be a tuple of facts, '
        f'got {stage.facts!r}.'
      )
    kinds = [type(x) for x in stage.facts]
    wrong = [x.__name__ for x in kinds if side not in x.sides]
    twice = sorted({x.__name__ for x in kinds if kinds.count(x) > 1})
    if wrong or twice:
      raise IncompatibleStages(
        f'the {side} side of {layer.name!r} states {(wrong or twice)[0]}, which '
        f'{"does not belong on that side" if wrong else "it states already"}.'
      )
  for pair in PAIRS:
    if sum(layer.sides[x].init is not None for x in pair if x in layer.sides) > 1:
      raise IncompatibleStages(
        f'{layer.name!r} must declare a state on one of its sides {pair!r}, got two `init`.'
      )


def _check_places(layers: Round) -> None:
  """Raises for a layer on the wrong side of the algorithm."""
  algorithm = layers.algorithm
  if algorithm.server is None:
    raise IncompatibleStages(
      f'{algorithm.name!r} trains: it must have a server side, from the aggregate to parameters.'
    )
  for layer in layers.before(algorithm):
    if layer.cohort is not None:
      raise IncompatibleStages(
        f'{layer.name!r} works on messages: it must come after the algorithm {algorithm.name!r}.'
      )
  for layer in layers.after(algorithm):
    if layer.fact(Prepares) is not None:
      raise IncompatibleStages(
        f'{layer.name!r} works on tasks: it must come before the algorithm {algorithm.name!r}.'
      )
