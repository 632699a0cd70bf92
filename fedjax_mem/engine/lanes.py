"""Lanes: several simulations whose programs differ in numbers alone, in one compiled program.

Every lane is planned and traced as a simulation alone would be, on one device. Lanes of one
structure (`alike`) become one program that takes their numbers, parameters, seeds and roots
(`lifting`). It runs lanes side by side (`vmap`) or one after another, and divides them over the
devices. All lanes of a program do their rounds together, so that what does not differ, such as the
examples and, with equal seeds, the cohorts, is shared. A lane whose round fails stays as it was
before; the others go on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_mem.core import Noises, Population, State, Tree, keys, platforms, tree, validate
from fedjax_mem.engine import execution as executions
from fedjax_mem.engine import lifting, plan, replay
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.engine import metrics as measured
from fedjax_mem.engine.run import Simulation
from fedjax_mem.kernels.nn import rewrite

_PROGRAMS = ('start', 'round', 'draw')


class Lane(NamedTuple):
  """One simulation, its initial parameters, and its traces, taken apart.

  Attributes:
    sim: planned on one device.
    params: initial parameters.
    start: (parameters, population, seed, root) -> state, read.
    round: (state, population, seed, root) -> (state, metrics), read.
    draw: (state, population, seed, root) -> ids [block, C] of the next rounds, read; None unless
      clients add noise themselves, so that somebody has to know ahead.
    like: name of one of these three -> shapes of what it returns.
  """

  sim: Simulation
  params: Tree
  start: lifting.Program
  round: lifting.Program
  draw: lifting.Program | None
  like: dict[str, Any]


def lane(sim: Simulation, params: Tree) -> Lane:
  """Returns a simulation as a lane.

  Args:
    sim: a simulation on one device; its root is that of the lane.
    params: its initial parameters.

  Raises:
    ValueError: it is on several devices.
  """
  if sim.setting.layout.mesh.size != 1:
    raise ValueError(f'a lane must be on one device, got {sim.setting.layout.mesh.size}.')
  used = np.uint32(sim.seed), np.asarray(sim.root)
  setting = sim.setting

  def one(state: State, population: Population, seed: Any, root: Any) -> tuple[State, Any]:
    new, metrics = setting.round(state, population, seed, root)
    return new, {name: measured.plain(x) for name, x in metrics.items()}

  def draw(state: State, population: Population, seed: Any, root: Any) -> jax.Array:
    del population
    return plan.peek(setting, state, seed, root, sim.max_rounds if setting.layers.blind else 1)

  read, like = {}, {}
  first = params
  programs: dict[str, Any] = {'start': functools.partial(plan.initial_state, setting), 'round': one}
  for name, f in programs.items():
    traced, like[name] = jax.make_jaxpr(f, return_shape=True)(first, sim.population, *used)
    read[name], first = lifting.read(traced), like['start']
  local = any(noise.trust != 'central' for _, _, noise in setting.layers.having(Noises))
  if local:
    traced, like['draw'] = jax.make_jaxpr(draw, return_shape=True)(first, sim.population, *used)
    read['draw'] = lifting.read(traced)
  return Lane(sim, params, read['start'], read['round'], read.get('draw'), like)


def alike(lanes: Sequence[Lane]) -> list[list[int]]:
  """Returns the lanes, by their numbers, in groups of which each can be one program."""
  groups: list[list[int]] = []
  for i, x in enumerate(lanes):
    for group in groups:
      if _together(lanes[group[0]], x):
        group.append(i)
        break
    else:
      groups.append([i])
  return groups


def _together(a: Lane, b: Lane) -> bool:
  pairs = [(getattr(a, name), getattr(b, name)) for name in _PROGRAMS]
  if (a.draw is None) != (b.draw is None):
    return False
  for one, other in pairs:
    if one is None:
      continue
    if one.structure != other.structure:
      return False
    if not all(one.movable[place] for place in lifting.differing([one, other])):
      return False
  structure: Any = jax.tree.structure
  same: bool = structure((a.like, a.sim.population)) == structure((b.like, b.sim.population))
  return same and a.sim.claims == b.sim.claims


class _Apart(NamedTuple):
  """What each lane has of its own, [L, ...] each, and what is the same for all of them.

  Attributes:
    own: name -> values of every lane.
    shared: name -> value of all lanes.
  """

  own: dict[str, Any]
  shared: dict[str, Any]

  @classmethod
  def of(cls, values: Mapping[str, Sequence[Any]]) -> '_Apart':
    """Returns name -> values of the lanes, divided into those that differ and those that do not."""
    own, shared = {}, {}
    for name, found in values.items():
      if all(x is found[0] or _equal(x, found[0]) for x in found[1:]):
        shared[name] = found[0]
      else:
        own[name] = jax.tree.map(lambda *x: jnp.stack(x), *found)
    return cls(own, shared)


def _equal(a: Any, b: Any) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(x is y or np.array_equal(x, y) for x, y in pairs)


@dataclasses.dataclass(frozen=True)
class Lanes:
  """Lanes of one structure, compiled as one program.

  Attributes:
    lanes: the lanes, L of them.
    at_once: lanes side by side on a device.
    devices: devices over which the lanes are divided.
    max_rounds: rounds of the longest segment.
  """

  lanes: tuple[Lane, ...]
  at_once: int
  devices: int
  max_rounds: int

  @property
  def size(self) -> int:
    """Number of lanes, L."""
    return len(self.lanes)

  @functools.cached_property
  def _padded(self) -> tuple[Lane, ...]:
    """The lanes, and copies of the first up to a multiple of the devices."""
    return self.lanes + self.lanes[:1] * (-self.size % self.devices)

  @functools.cached_property
  def _mesh(self) -> jax.sharding.Mesh:
    return meshes.make_mesh(self.devices)

  @functools.cached_property
  def _given(self) -> _Apart:
    """What the programs take besides the state."""
    lanes = self._padded
    where = meshes.replicated(self._mesh)
    values: dict[str, list[Any]] = {}
    for name in ('arrays', 'index', 'start', 'count'):
      values[name] = [getattr(x.sim.population, name) for x in lanes]
    values |= {
      'seed': [np.uint32(x.sim.seed) for x in lanes],
      'root': [np.asarray(x.sim.root) for x in lanes],
      'params': [x.params for x in lanes],
    }
    made = _Apart.of(values)
    for name, places in self._places.items():
      made.own[f'of {name}'] = lifting.stacked([getattr(x, name) for x in lanes], places)
    own = jax.device_put(made.own, jax.NamedSharding(self._mesh, PartitionSpec(meshes.AXIS)))
    return _Apart(own, jax.device_put(made.shared, where))

  @functools.cached_property
  def _places(self) -> dict[str, list[int]]:
    names = [x for x in _PROGRAMS if getattr(self.lanes[0], x) is not None]
    return {n: lifting.differing([getattr(x, n) for x in self.lanes]) for n in names}

  def _call(self, name: str, given: dict[str, Any], first: Tree) -> Any:
    """Returns what a program of one lane returns, with the numbers of that lane."""
    program = lifting.lifted(getattr(self.lanes[0], name), self._places[name])
    population = Population(*(given[x] for x in ('arrays', 'index', 'start', 'count')))
    arguments = jax.tree.leaves((first, population, given['seed'], given['root']))
    results = program(given[f'of {name}'], arguments)
    return jax.tree.unflatten(jax.tree.structure(self.lanes[0].like[name]), results)

  def _mapped(self, one: Callable[..., Any], own: Tree, shared: Tree) -> Any:
    """Returns `one` (own, shared) for every lane, divided over the devices."""

    def on_device(own: Tree, shared: Tree) -> Any:
      here = -(-self.size // self.devices)
      each: Callable[[Tree], Any] = lambda x: one(x, shared)
      if self.at_once >= here:
        return jax.vmap(each)(own)
      mapped: Any = jax.lax.map  # without `batch_size`: no vmap, and so the bits of a run alone
      return mapped(each, own, **({'batch_size': self.at_once} if self.at_once > 1 else {}))

    if self.devices == 1:
      return on_device(own, shared)
    split, whole = PartitionSpec(meshes.AXIS), PartitionSpec()
    divided: Any = jax.shard_map
    return divided(
      on_device, mesh=self._mesh, in_specs=(split, whole), out_specs=split, check_vma=False
    )(own, shared)

  def _start(self, own: Tree, shared: Tree) -> Any:
    """Returns (parameters, client states, server states) of all lanes before the first round."""

    def one(own: dict[str, Any], shared: dict[str, Any]) -> Any:
      given = own | shared
      return tuple(self._call('start', given, given['params'])[1:])

    return self._mapped(one, own, shared)

  @keys.fixed()
  def init(self) -> State:
    """Returns the states before the first round: `round` is a number, all else [L, ...]."""
    start = jax.jit(self._start, compiler_options=self.lanes[0].sim.options)
    return self.placed(State(jnp.int32(0), *start(*self._given)))

  @keys.fixed()
  def check(self) -> None:
    """Traces the program on shapes: whatever it raises, these lanes cannot be one program."""
    state = State(jnp.int32(0), *jax.eval_shape(self._start, *self._given))
    on = np.zeros(len(self._padded), bool)
    jax.eval_shape(self._segment, state, *self._given, on, np.int32(1))

  def placed(self, state: State) -> State:
    """Returns a state, such as one that was restored, on the devices as the program takes it."""
    short = len(self._padded) - jax.tree.leaves(state.params)[0].shape[0]
    pad = lambda x: jnp.concatenate([x, *[x[:1]] * short]) if short else x
    split = jax.NamedSharding(self._mesh, PartitionSpec(meshes.AXIS))
    parts = jax.device_put(jax.tree.map(pad, state[1:]), split)
    return State(jax.device_put(state.round, meshes.replicated(self._mesh)), *parts)

  @functools.cached_property
  def segment(self) -> jax.stages.Wrapped:
    """The compiled program: see `run`."""
    first = self.lanes[0]
    used = first.sim.population, np.uint32(0), np.zeros(2, np.uint32)
    traced = first.sim.setting.round.trace(first.like['start'], *used).jaxpr
    rewrite.warn_if_slow(traced, platforms.current())
    return jax.jit(self._segment, donate_argnums=0, compiler_options=self.lanes[0].sim.options)

  def _segment(
    self, state: State, own: Tree, shared: Tree, active: jax.Array, rounds: jax.Array
  ) -> tuple[State, dict[str, jax.Array], jax.Array]:
    def one(own: Any, shared: Any) -> Any:
      (parts, mine, on), (begun, given, rounds) = own, shared
      zeros = lambda x: jnp.zeros((self.max_rounds, *x.shape), x.dtype)
      rows = jax.tree.map(zeros, self.lanes[0].like['round'][1])

      def body(i: jax.Array, carry: Any) -> Any:
        parts, on, done, rows = carry
        new, metrics = self._call('round', {**given, **mine}, State(begun + i, *parts))
        rows = jax.tree.map(lambda all, x: all.at[i].set(x), rows, metrics)
        lost = (metrics['clients'] == 0) & (metrics['not_finite'] >= 0).any()
        parts = tree.select(on, new[1:], parts)
        return parts, on & metrics['finite'] & ~lost, done + on.astype(jnp.int32), rows

      start = parts, on, jnp.int32(0), rows
      parts, on, done, rows = jax.lax.fori_loop(0, rounds, body, start)
      return parts, rows, done

    mine = (tuple(state[1:]), own, active)
    parts, rows, done = self._mapped(one, mine, (state.round, shared, rounds))
    return State(state.round + rounds, *parts), rows, done

  @keys.fixed()
  def compile(self, state: State) -> State:
    """Returns the states after no rounds: compiles the program. The state given is donated."""
    off = np.zeros(len(self._padded), bool)
    same: State = self.segment(state, *self._given, off, np.int32(0))[0]
    jax.block_until_ready(same)
    return same

  @keys.fixed()
  def run(
    self, state: State, rounds: int, active: np.ndarray
  ) -> tuple[State, dict[str, np.ndarray], np.ndarray]:
    """Returns the states after `rounds` more rounds; metrics [L, rounds, ...]; rounds done [L].

    The state given is donated. A lane is done after a round whose parameters are not finite, or, if
    no privacy is claimed, in which no client had a finite update: only so many of its rows count.

    Args:
      state: from `init` or an earlier `run`.
      rounds: how many, 1 … `max_rounds`.
      active: [L] booleans; the other lanes stay as they are.

    Raises:
      ValueError: rounds out of range.
    """
    validate.integer(at_most=self.max_rounds, rounds=rounds)
    on = np.zeros(len(self._padded), bool)
    on[: self.size] = active
    state, rows, done = self.segment(state, *self._given, on, np.int32(rounds))
    rows, done = jax.device_get((rows, done))
    return state, {name: x[: self.size, :rounds] for name, x in rows.items()}, done[: self.size]

  @functools.cached_property
  def _draw(self) -> jax.stages.Wrapped:
    def one(own: Any, shared: Any) -> Any:
      (parts, mine), (begun, given) = own, shared
      return self._call('draw', {**given, **mine}, State(begun, *parts))

    draw = lambda state, own, shared: self._mapped(
      one, (tuple(state[1:]), own), (state.round, shared)
    )
    return jax.jit(draw, compiler_options=self.lanes[0].sim.options)

  @keys.fixed()
  def cohorts(self, state: State) -> np.ndarray | None:
    """Returns the ids [L, rounds, C] that the next rounds will draw, padding included.

    None where nobody has to know them ahead: no client adds noise itself. After a round with
    feedback only one more is known.
    """
    if self.lanes[0].draw is None:
      return None
    return np.asarray(self._draw(state, *self._given))[: self.size]

  def kept(self, state: State) -> State:
    """Returns the states on the host as they may be kept on a disk: without noise or padding."""
    state = replay.without(self.lanes[0].sim.setting.layers, state)
    parts = jax.tree.map(lambda x: np.asarray(x)[: self.size], state[1:])
    round: Any = np.asarray(state.round)
    return State(round, *parts)

  def again(self, kept: State, active: np.ndarray) -> State:
    """Returns the states from `kept`, noise drawn again, on the devices.

    Args:
      kept: from `kept`.
      active: [L] booleans; a lane that has ended needs no noise any more, and gets that of zero
        rounds.
    """
    if not replay.noise_layers(self.lanes[0].sim.setting.layers):
      return self.placed(kept)
    states = []
    for i, x in enumerate(self.lanes):
      rounds: Any = kept.round if active[i] else np.int32(0)
      one = State(rounds, *jax.tree.map(lambda x, i=i: x[i], kept[1:]))
      states.append(jax.device_get(x.sim.with_noise(one)))
    parts = jax.tree.map(lambda *x: np.stack(x), *(x[1:] for x in states))
    return self.placed(State(kept.round, *parts))

  def params(self, state: State, i: int) -> Tree:
    """Returns the parameters of lane i, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[i]), state.params)


def together(
  lanes: Sequence[Lane], max_rounds: int, at_once: int | None = None, devices: int | str = 'auto'
) -> Lanes:
  """Returns lanes of one structure as one program.

  Args:
    lanes: of one group of `alike`.
    max_rounds: rounds of the longest segment.
    at_once: lanes side by side on a device; None: all of a model that is small enough that clients
      run side by side (`execution.mode`), else one.
    devices: devices over which lanes are divided, or 'auto'.

  Raises:
    ValueError: a number is out of range.
  """
  if at_once is not None:
    validate.integer(at_once=at_once)
  most = len(jax.devices())
  wanted = most if devices == 'auto' else validate.integer(at_most=most, devices=devices)
  wanted = min(wanted, len(lanes))
  if at_once is None:
    looped = executions.resolve(executions.Execution(devices=1), 1, lanes[0].params).looped
    at_once = 1 if looped else len(lanes)
  return Lanes(tuple(lanes), at_once, wanted, max_rounds)
