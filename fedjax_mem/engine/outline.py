"""A simulation on shapes: what its rounds will need, before anything is compiled.

It holds no examples and draws nothing. It says how large the program of many rounds will be on a
device (`peak`), what the compiler says of it (`compiled`), and between which numbers the integers
are that the sides of a round report as metrics (`noted`), such as the bytes of a message.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Layer,
  Message,
  Population,
  Shape,
  State,
  Task,
  Total,
  Transform,
  Tree,
  compose,
  keys,
  scalar_member,
  tree,
)
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine import execution as executions
from fedjax_mem.engine import flat, liveness, plan, pooled, ranges, rules, walk
from fedjax_mem.engine.cast import Row, broadcast, context, examples
from fedjax_mem.engine.execution import Execution
from fedjax_mem.engine.mesh import replicated
from fedjax_mem.engine.run import Simulation, check_claims
from fedjax_mem.engine.setting import Rooms, Setting


class Outline(Simulation):
  """A simulation of which nothing is compiled, and whose examples are shapes."""

  @property
  def options(self) -> dict[str, Any] | None:
    """None: to ask which options the compiler knows would compile a program."""
    return None

  def told(self) -> Simulation:
    """Returns the simulation with the compiler's options, still on shapes."""
    return Simulation(**{name: getattr(self, name) for name in Simulation.__dataclass_fields__})


def first_state(outline: Simulation) -> State:
  """Returns the shapes of the state before the first round."""
  state: State = jax.eval_shape(
    functools.partial(plan.initial_state, outline.setting),
    outline.params,
    outline.population,
    np.uint32(outline.seed),
    outline.root,
  )
  return state


def stack_bytes(outline: Simulation) -> int:
  """Returns the bytes that the messages of a cohort take on a device for a cohort side; else 0.

  A rule that treats each coordinate by itself has some coordinates a device.
  """
  setting, found = outline.setting, 0
  for x in setting.layers:
    if x.cohort is not None:
      whole = rules.divided_side(x, setting.layout.mesh) is x.cohort
      size = setting.capacity * tree.nbytes(setting.specs[x.name])
      found = max(found, size if whole else -(-size // setting.layout.devices))
  return found


class Peak(NamedTuple):
  """Bytes that a program takes on one device while it runs.

  Attributes:
    arguments: state and examples; results take the place of the state.
    beside: all else: values in between, and results that take no argument's place.
  """

  arguments: int
  beside: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.arguments + self.beside


def outlined(
  layers: tuple[Layer, ...],
  params: Tree,
  population: Population,
  *,
  seed: int = 0,
  execution: Execution | None = None,
  max_rounds: int = 64,
  shape: Shape,
  transforms: tuple[Transform, ...] = (),
  expect_privacy: bool = False,
  counts: Any = None,
) -> Outline:
  """Returns a simulation on shapes, checked as by `simulate`, whose arguments these are.

  Divided examples are given as `apart.shapes` makes them, with the clients' numbers of examples
  [N], `counts`.

  Raises:
    IncompatibleStages: layers that do not fit together, or make no claim where one is expected.
    ValueError: an argument out of range.
  """
  made = compose(*layers)
  check_claims(made, expect_privacy)
  execution = execution or Execution()
  layout = executions.resolve(execution, made.draws.capacity, params)
  params = tree.shapes(params)
  rooms = Rooms.of(counts) if execution.divides else False
  setting = plan.make_setting(
    *(made, params, tree.shapes(population), shape, layout, transforms, execution.pool), apart=rooms
  )
  whole = replicated(layout.mesh)
  # Divided examples say how they lie on the devices.
  shape_of: Any = jax.ShapeDtypeStruct

  def put(x: Any) -> Any:
    there = whole if setting.apart is None or x.sharding is None else x.sharding
    return shape_of(x.shape, x.dtype, sharding=there)

  placed = jax.tree.map(put, population)
  return Outline(setting, placed, seed, max_rounds, params, np.zeros(2, np.uint32), True)


def peak(outline: Simulation) -> Peak:
  """Returns the bytes that the program of many rounds will take on a device, estimated.

  Those of its arguments are exact. The estimate of what is beside them is in `liveness`.
  """
  traced = outline.traced()
  state, *others = traced.args_info[0]
  setting = outline.setting

  def share(where: Any, x: Any) -> float:
    size = math.prod(x.shape)
    return math.prod(where.shard_shape(x.shape)) / size if size else 1.0

  shares = jax.tree.map(
    lambda where, part: jax.tree.map(lambda x: share(where, x), part), outline.shardings, state
  )
  donated = jax.tree.leaves(shares)
  population, *rest = others
  held_of = [1 / _parts(setting, x) for x in jax.tree.leaves(outline.population)]
  assert len(held_of) == len(jax.tree.leaves(population))
  every = donated + held_of + [1.0] * len(jax.tree.leaves(rest))
  variables = traced.jaxpr.jaxpr.invars
  held = sum(x * flat.nbytes(v.aval) for x, v in zip(every, variables, strict=True))
  beside = liveness.temporaries(traced.jaxpr, every, len(donated))
  return Peak(round(held), round(liveness.PACKING * beside))


def _parts(setting: Setting, x: Any) -> int:
  """Returns into how many parts an array of the population is cut."""
  whole = setting.apart is None or x.sharding is None or x.sharding.is_fully_replicated
  return 1 if whole else setting.layout.devices


def data_bytes(outline: Simulation) -> int:
  """Returns the bytes of examples on a device."""
  leaves = jax.tree.leaves(outline.population)
  return sum(tree.nbytes(x) // _parts(outline.setting, x) for x in leaves)


def compiled(outline: Outline) -> Peak:
  """Returns the same by the compiler: this compiles the program of many rounds.

  Arguments, temporaries, and results that are not in an argument's place: all of them are there at
  the same time. (The compiler's own `peak_memory_in_bytes` leaves temporaries out on a CPU.)
  """
  said = outline.told().traced().lower().compile().memory_analysis()
  results = said.output_size_in_bytes - said.alias_size_in_bytes
  return Peak(said.argument_size_in_bytes, results + said.temp_size_in_bytes)


def at_once(outline: Simulation) -> int:
  """Returns how many clients a device takes at once; of a pooled round, those in one product."""
  setting = outline.setting
  if setting.pool is None:
    return setting.layout.chunk
  return pooled.clients_at_once(setting)


@keys.fixed()
def noted(outline: Simulation, ending: str) -> dict[str, ranges.Range]:
  """Returns the ranges of counts that the sides of a round report, for one client that arrives.

  Args:
    outline: of the run.
    ending: of the names of metrics that are `arrived * (count // unit)`.

  Returns:
    'layer/metric', without the ending -> (least, most) of the count; None: unknown.
  """
  found: dict[str, Any] = {}

  def run(params: Tree, population: Population, seed: Any, root: Any) -> dict[str, Any]:
    metrics = _of_one(outline, params, population, seed, root)
    for name, x in metrics.items():
      if name.endswith(ending):
        found[name.removesuffix(ending)] = x.value if isinstance(x, Total) else x
    return found

  words = jax.ShapeDtypeStruct((2,), np.uint32)
  seed = jax.ShapeDtypeStruct((), np.uint32)
  shapes = (outline.params, tree.shapes(outline.population), seed, words)
  program = jax.make_jaxpr(run)(*shapes)
  return dict(zip(sorted(found), ranges.of_quotients(program), strict=True))


def _of_one(
  outline: Simulation, params: Tree, population: Population, seed: Any, root: Any
) -> dict[str, Any]:
  """Returns the metrics of a round with a single client."""
  setting = outline.setting
  number = setting.shape.num_clients
  client = scalar_member(0)
  alone = jax.tree.map(lambda x: x[None], client)
  cast = broadcast(
    seed,
    0,
    params,
    root=root,
    cohort=cohorts.pad(alone, setting.capacity, number),
    population=population,
  ).deriving(setting.layers)
  first = functools.partial(context, setting.layers)
  servers = {x.name: x.value(first(x, 'init', cast, setting.specs)) for x in setting.layers}
  cast = cast._replace(servers=servers)
  row = Row(client, population.start[0], population.count[0])
  value: Any = Task(params, examples(cast, row, row.count, setting.shape, True, setting.transforms))
  metrics: dict[str, Any] = {}
  for x in setting.layers:
    own = x.row(first(x, 'init', cast, setting.specs, client))
    if x.client is not None:
      value, rows, more, _ = walk.client_pass(
        setting.layers, (x,), cast, setting.specs, client, value, {x.name: own}
      )
      own = rows[x.name]
      metrics |= more
    if x.cohort is not None:
      many = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (setting.capacity, *jnp.shape(x))), (value, own)
      )
      stack, _, more = walk.cohort_pass(setting.layers, x, x.cohort, cast, setting.specs, *many)
      value = jax.tree.map(lambda x: x[0], stack)
      metrics |= more
  message: Message = value
  return metrics | walk.server_pass(setting.layers, cast, setting.specs, message)[2]
