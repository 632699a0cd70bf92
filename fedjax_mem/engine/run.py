"""Many rounds in one compiled program: `simulate` plans a run, `Simulation.run` runs its rounds.

The rounds of one call are a segment: a loop inside one program, which is dispatched once and reuses
the memory of the state that it is given (donation).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Population,
  Round,
  Shape,
  State,
  Transform,
  Tree,
  compose,
  keys,
  packing,
  platforms,
  shape_of,
  shapes,
  tree,
  validate,
)
from fedjax_mem.engine import apart, personal, plan, replay, tables
from fedjax_mem.engine import execution as executions
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.engine import metrics as measured
from fedjax_mem.engine.execution import Execution
from fedjax_mem.engine.setting import Setting
from fedjax_mem.kernels.nn import rewrite

# (rounds done, whether to go on, state, rows of metrics, packed)
Carry = tuple[jax.Array, jax.Array, State, packing.Packed]


@dataclasses.dataclass(frozen=True)
class Simulation:
  """A checked round, compiled for repeated use.

  Attributes:
    setting: layers, shapes and layout.
    population: the examples, on the devices.
    seed: the run's seed, in [0, 2**32).
    max_rounds: rounds of the longest segment.
    params: shapes of the parameters.
    root: the secret root, uint32 [2], from which noise and the draws that amplify it are derived:
      that of the last `init`, which makes a new one unless it is given.
    rooted: whether the root is given, by `noise_seed` or `with_root`.
  """

  setting: Setting
  population: Population
  seed: int
  max_rounds: int
  params: Tree
  root: np.ndarray = dataclasses.field(repr=False)
  rooted: bool = False

  @property
  def shardings(self) -> State:
    """The shardings of a state, a prefix of its tree, for `jax.device_put` of a restored state."""
    setting = self.setting
    return tables.shardings(setting.split, setting.layout.mesh, setting.shards)

  @property
  def claims(self) -> bool:
    """Whether some layer adds noise, so that privacy is claimed."""
    return self.setting.layers.claims

  def with_root(self, root: np.ndarray) -> 'Simulation':
    """Returns the simulation with a given secret root, such as that of the run it resumes."""
    return dataclasses.replace(self, root=np.array(root, np.uint32), rooted=True)

  @property
  def covered(self) -> frozenset[str]:
    """Names of the metrics that a claim of privacy covers (`Covered`); no other is."""
    return self.setting.covered

  def without_noise(self, state: State) -> State:
    """Returns the state without its noise, as it may be kept on a disk."""
    return replay.without(self.setting.layers, state)

  @keys.fixed()
  def with_noise(self, state: State) -> State:
    """Returns the state, from `without_noise`, with its noise drawn again from the secret root.

    Costs as many draws as rounds were done, if noise is correlated from round to round.
    """
    whole: State = self._replay(state, self.root)
    return whole

  @functools.cached_property
  def _replay(self) -> jax.stages.Wrapped:
    again = functools.partial(replay.drawn_again, self.setting)
    return jax.jit(again, out_shardings=self.shardings, compiler_options=self.options)

  def _keys(self, seed: int | None, noise_seed: int | None) -> tuple[np.uint32, np.ndarray]:
    """Returns (seed, secret root) of a run with these in place of those of the simulation."""
    used = np.uint32(self.seed if seed is None else seed)
    if noise_seed is not None:
      return used, _root(noise_seed)
    if used == self.seed:
      return used, self.root
    # Runs with different seeds must not share their noise.
    own = jax.random.fold_in(keys.root_key(self.root), used)
    return used, np.asarray(jax.random.key_data(own))

  @functools.cached_property
  def _init(self) -> jax.stages.Wrapped:
    init = functools.partial(plan.initial_state, self.setting)
    return jax.jit(init, out_shardings=self.shardings, compiler_options=self.options)

  @functools.cached_property
  def segment(self) -> jax.stages.Wrapped:
    """The compiled program.

    (state, population, seed, secret root, rounds) -> (state, packed metrics, rounds done).
    """
    rounds = functools.partial(_segment, self.setting, self.max_rounds)
    return jax.jit(rounds, donate_argnums=0, compiler_options=self.options)

  @property
  def options(self) -> dict[str, Any] | None:
    """The compiler's options, of all programs alike: what is drawn again has the same bits."""
    return meshes.options_for(self.setting.layout.mesh)

  @keys.fixed()
  def traced(self) -> jax.stages.Traced:
    """Returns the program, traced on shapes and not compiled: to be lowered for any platform.

    Under `core.platforms.made_for`, as `simulate` was, it takes the paths of that platform.
    """
    used = self._keys(None, None)
    state = jax.eval_shape(self._init, self.params, self.population, *used)
    return self.segment.trace(state, self.population, *used, np.int32(1))

  @keys.fixed()
  def init(
    self,
    params: Tree,
    population: Population | None = None,
    seed: int | None = None,
    noise_seed: int | None = None,
  ) -> State:
    """Returns the state before the first round of a run.

    Each call begins a run with noise of its own, unless its root is given: the difference of two
    runs with the same noise would tell their sums.

    Args:
      params: the initial parameters; they are copied.
      population: other examples than those planned for, of the same shapes.
      seed: another seed than that of the simulation; nothing is compiled again. The noise is
        another one, too.
      noise_seed: as in `simulate`; None: the noise is that of the simulation and of the seed.

    Raises:
      ValueError: parameters of another structure or shape than those planned for.
    """
    if not shapes.same(params, self.params):
      raise ValueError(
        f'params must be of the shapes {self.params!r}, got {tree.shapes(params)!r}.'
      )
    population = self.population if population is None else population
    if not self.rooted:
      self.root[:] = keys.fresh_root()
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params))
    if self.setting.shards is not None and not traced:  # at no moment whole on every device
      params = jax.tree.map(meshes.put, params, self.shardings.params)
    elif jax.process_count() > 1:  # what is on a device of one process is on none of the others
      params = meshes.put(jax.device_get(params), meshes.replicated(self.setting.layout.mesh))
    init: Any = functools.partial(plan.initial_state, self.setting) if traced else self._init
    state: State = init(params, population, *self._keys(seed, noise_seed))
    return state

  @keys.fixed()
  def compile(self, state: State, population: Population | None = None) -> State:
    """Returns the state after no rounds: compiles the segment. The state given is donated.

    Args:
      state: from `init`.
      population: as for `run`.
    """
    population = self.population if population is None else population
    same: State = self.segment(state, population, *self._keys(None, None), np.int32(0))[0]
    return same

  @keys.fixed()
  def run(
    self,
    state: State,
    rounds: int,
    population: Population | None = None,
    seed: int | None = None,
    noise_seed: int | None = None,
  ) -> tuple[State, dict[str, np.ndarray]]:
    """Returns the state after up to `rounds` more rounds, and their metrics [rounds, ...].

    The state given is donated: it must not be used again. Stops after a round whose parameters are
    not finite, or, if no privacy is claimed, in which no client had a finite update. So there may
    be fewer rows of metrics than rounds asked for.

    Args:
      state: from `init` or an earlier `run`.
      rounds: how many, 1 … `max_rounds`.
      population: the examples of these rounds' cohorts, if they are streamed.
      seed: that of `init`, if it was another one.
      noise_seed: that of `init`, if it was another one.

    Raises:
      ValueError: rounds out of range.
    """
    validate.integer(at_most=self.max_rounds, rounds=rounds)
    population = self.population if population is None else population
    used = self._keys(seed, noise_seed)
    state, metrics, done = self.segment(state, population, *used, np.int32(rounds))
    metrics, done = jax.device_get((metrics, done))
    return state, {name: x[:done] for name, x in metrics.open(axes=1).items()}

  def scored(self, state: State) -> Tree:
    """Returns the parameters to score: the state's, with the mean of what clients keep of them."""
    return personal.scored(self.setting.layers, state)

  @keys.fixed()
  def cohorts(self, state: State, rounds: int) -> jax.Array:
    """Returns the ids [rounds, C] that the next rounds will draw, padding included.

    Raises:
      ValueError: more than one round is asked for, and a layer that selects looks at data or has a
        server side, so that later draws depend on the rounds in between.
    """
    if rounds > 1 and not self.setting.layers.blind:
      raise ValueError(f'rounds must be 1 for a sampler with feedback, got {rounds!r}.')
    ids: jax.Array = self._peek(state, *self._keys(None, None), rounds)
    return ids

  @functools.cached_property
  def _peek(self) -> jax.stages.Wrapped:
    peek = functools.partial(plan.peek, self.setting)
    return jax.jit(peek, static_argnums=3, compiler_options=self.options)


@keys.fixed()
def simulate(
  layers: tuple[Layer, ...],
  params: Tree,
  population: Population,
  *,
  seed: int = 0,
  execution: Execution | None = None,
  max_rounds: int = 64,
  shape: Shape | None = None,
  transforms: tuple[Transform, ...] = (),
  expect_privacy: bool = False,
  noise_seed: int | None = None,
) -> Simulation:
  """Returns the simulation of a round, checked before anything is compiled.

  Two clients draw the model to 1 and to 3; FedAvg settles in the middle:

  >>> loss = lambda params, batch, key: 0.5 * (params - batch['x']) ** 2
  >>> train = fm.stages.algorithm.fedavg(loss, learning_rate=0.5, batch_size=4)
  >>> layers = (fm.stages.select.round_robin(2, 2), train, fm.stages.weigh.by_examples())
  >>> clients = fm.core.stack_clients([{'x': jnp.full(4, 1.0)}, {'x': jnp.full(4, 3.0)}])
  >>> sim = simulate(layers, jnp.float32(0), clients)
  >>> round(float(sim.run(sim.init(jnp.float32(0)), rounds=20)[0].params), 3)
  2.0

  Args:
    layers: of the round, in the order in which they run on the client.
    params: the initial parameters, or their shapes.
    population: the examples of N clients.
    seed: root of every random draw, in [0, 2**32).
    execution: how to run the cohort; by default chosen by the platform and the model.
    max_rounds: rounds of the longest segment that `run` will be asked for.
    shape: static facts about the population; by default read from it.
    transforms: functions batch -> batch, applied to every batch that is gathered (normalisation:
      the examples stay in their stored dtype).
    expect_privacy: refuse a round in which no layer states that it adds noise (`Noises`).
    noise_seed: root of the noise under a claim of privacy, and of draws that amplify it, in
      [0, 2**32): makes them repeatable for who knows it, which the claim does not cover. With
      `noise_seed = seed` they have the same root as all other draws. None: a secret root, fresh for
      each run, from its `init` on.

  Raises:
    IncompatibleStages: layers that do not fit together, or make no claim where one is expected.
    ValueError: an argument out of range.
  """
  made = compose(*layers)
  check_claims(made, expect_privacy)
  validate.seed(seed=seed)
  root = keys.fresh_root() if noise_seed is None else _root(noise_seed)
  validate.integer(max_rounds=max_rounds)
  execution = execution or Execution()
  layout = executions.resolve(execution, made.draws.capacity, params)
  shape = shape_of(population) if shape is None else shape
  population = held(population, layout.mesh, execution.divides)
  like = tree.shapes(params)
  setting = plan.make_setting(
    made, like, population, shape, layout, transforms, execution.pool, execution.divides
  )
  return Simulation(setting, population, seed, max_rounds, like, root, noise_seed is not None)


def held(population: Population, mesh: Mesh, divided: bool) -> Population:
  """Returns the population on the devices: divided over them, or whole on each of them."""
  index = population.index
  whole = not isinstance(index, jax.Array) or index.sharding.is_fully_replicated
  if divided and mesh.shape[meshes.AXIS] > 1:
    return apart.divide(population, mesh) if whole else population
  placed: Population = meshes.put(population, meshes.replicated(mesh))
  return placed


def check_claims(layers: Round, expected: bool) -> None:
  """Raises `IncompatibleStages` where a claim is expected and no layer adds noise."""
  if expected and not layers.claims:
    raise IncompatibleStages(
      f'a claim of privacy is expected, and no layer of {[x.name for x in layers]!r} states that '
      'it adds noise (Noises): add one, such as central with a noise_multiplier > 0.'
    )


def _root(noise_seed: int) -> np.ndarray:
  """Returns the root of a repeatable run."""
  return np.asarray(keys.open_root(validate.seed(noise_seed=noise_seed)))


def _segment(
  setting: Setting,
  max_rounds: int,
  state: State,
  population: Population,
  seed: jax.Array,
  root: jax.Array,
  rounds: jax.Array,
) -> tuple[State, packing.Packed, jax.Array]:
  """Returns the state after up to `rounds` rounds, metrics [max_rounds, ...] and the rounds done.

  A while loop and not a scan, so that the same program runs segments of every length.
  """
  round = setting.round
  traced, like = jax.make_jaxpr(round, return_shape=True)(state, population, seed, root)
  rewrite.warn_if_slow(traced, platforms.current())
  like = {name: measured.plain(x) for name, x in like[1].items()}
  rows = jax.eval_shape(packing.Packed.of, like)
  rows = jax.tree.map(lambda x: jnp.zeros((max_rounds, *x.shape), x.dtype), rows)

  def go_on(carry: Carry) -> jax.Array:
    done, sound, _, _ = carry
    return (done < rounds) & sound

  def body(carry: Carry) -> Carry:
    done, _, state, rows = carry
    state, metrics = round(state, population, seed, root)
    metrics = {name: measured.plain(x) for name, x in metrics.items()}
    rows = jax.tree.map(lambda all, x: all.at[done].set(x), rows, packing.Packed.of(metrics))
    lost = (metrics['clients'] == 0) & (metrics['not_finite'] >= 0).any()
    return done + 1, metrics['finite'] & ~lost, state, rows

  done, _, state, rows = jax.lax.while_loop(
    go_on, body, (jnp.int32(0), jnp.bool_(True), state, rows)
  )
  # With the shardings that `init` gives, so that the second segment is not compiled again.
  kept = tables.shardings(setting.split, setting.layout.mesh, setting.shards)
  state = jax.lax.with_sharding_constraint(state, kept)
  return state, *meshes.whole((rows, done), setting.layout.mesh)
