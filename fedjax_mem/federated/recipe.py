"""From settings to the layers of a round, and the compiled sides of one client and of the server.

The objects compute nothing themselves: they call the sides of the same layers that the engine
compiles into whole rounds. A recipe is hashable, and its compiled sides are cached: clients with
equal settings and padded sizes share one program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_mem import engine
from fedjax_mem.core import (
  Batch,
  Context,
  Draw,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Mean,
  Message,
  Population,
  Round,
  Shape,
  Stage,
  Task,
  Tree,
  compose,
  keys,
  scalar_member,
  tree,
)
from fedjax_mem.core.examples import Rows
from fedjax_mem.federated import compression, privacy
from fedjax_mem.federated.config import CompressionConfig, PrivacyConfig
from fedjax_mem.models.base import Model
from fedjax_mem.stages import algorithm, weigh
from fedjax_mem.stages import compress as codecs

# (name, shape, dtype) of each of a client's arrays
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


class Recipe(NamedTuple):
  """All settings that a client's message and the server's step depend on.

  Attributes:
    model: the model's functions.
    epochs: passes over the client's examples.
    batch_size: examples in a step.
    learning_rate: step size of the local steps; under FedSGD that of the server's step.
    sgd: whether gradients are sent instead of trained updates.
    equal: whether all clients have equal weights.
    privacy: clip and noise of the clients, or None.
    noise: noise multiplier.
    compression: compression of the updates, or None.
    secure: whether messages are masked.
    transform: preprocessing, batch -> batch, or None.
  """

  model: Model
  epochs: int
  batch_size: int
  learning_rate: float
  sgd: bool
  equal: bool
  privacy: PrivacyConfig | None
  noise: float
  compression: CompressionConfig | None
  secure: bool
  transform: Any

  def inner(self) -> tuple[Layer, ...]:
    """Returns the layers after the weighing: clip and noise, compression."""
    noisy = privacy.layers(self.privacy, self.noise) if self.privacy else ()
    coded = (compression.layer(self.compression),) if self.compression else ()
    return noisy + coded

  def algorithm(self) -> Layer:
    """Returns the layer of the algorithm."""
    if self.sgd:
      step = optax.sgd(self.learning_rate)
      return algorithm.fedsgd(self.model.loss, batch_size=self.batch_size, server_optimizer=step)
    return algorithm.fedavg(
      self.model.loss,
      learning_rate=self.learning_rate,
      batch_size=self.batch_size,
      epochs=self.epochs,
    )

  @property
  def server_rate(self) -> float:
    """Learning rate of the server's step."""
    return self.learning_rate if self.sgd else 1.0

  def layers(self, chooser: Layer, *rules: Layer) -> Round:
    """Returns the layers of a round, given the layer that selects the clients and robust rules."""
    weighing = weigh.equal() if self.equal else weigh.by_examples()
    if chooser.cohort is not None:  # it looks at messages as the server receives them: goes last
      return compose(self.algorithm(), weighing, *self.inner(), chooser, *rules)
    return compose(self.algorithm(), chooser, weighing, *self.inner(), *rules)


@functools.cache
def given(number: int) -> Layer:
  """Returns the layer that selects all `number` clients; the objects have chosen them before."""

  def everyone(ctx: Context, draw: Draw, state: Tree) -> Any:
    cohort = jax.vmap(scalar_member)(jnp.arange(number, dtype=jnp.int32))
    return draw._replace(cohort=cohort), state, {}

  facts = (Draws('given', number, number, number), Looks('nothing'))
  return Layer('select', select=Stage(everyone, facts=facts))


class Sent(NamedTuple):
  """The results of one client.

  Attributes:
    code: the parts that are sent, or None without compression.
    message: the message as the server decodes it.
    before: mean loss at the parameters received.
    after: mean loss after training.
    norm: norm of the update, before it is weighted and clipped.
    clipped: whether the update was clipped, 0 or 1.
    finite: whether all values are finite.
  """

  code: Any
  message: Message
  before: jax.Array
  after: jax.Array
  norm: jax.Array
  clipped: jax.Array
  finite: jax.Array


class Sides(NamedTuple):
  """The compiled sides of a recipe, for one shape of a client's data.

  Attributes:
    setting: the planned round.
    client: (params, arrays, count, seed, round, id, root of the client's own noise) -> `Sent`.
    cohort: (layer's name, params, stack of messages [C, ...], the layer's rows [C, ...] or None in
      the first round, server states, seed, round) -> (sum of messages, new rows).
    server: (params, sum of messages, server states, seed, round) -> (params, states).
    states: params -> server states before the first round.
  """

  setting: engine.Setting
  client: Any
  cohort: Any
  server: Any
  states: Any


def capacity(count: int, batch_size: int) -> int:
  """Returns the number of rows that a client's data are padded to.

  A power of two of batches: few sizes, hence few compiled programs.
  """
  steps = -(-count // batch_size)
  return batch_size * (1 << max(0, (steps - 1).bit_length()))


def rows(arrays: dict[str, Any], count: jax.Array) -> Population:
  """Returns a population of N clients; the list of each begins with the first row of `arrays`."""
  number = arrays['y'].shape[0]
  return Population(arrays, jnp.arange(number, dtype=jnp.int32), 0 * count, count)


@functools.lru_cache(maxsize=256)
def sides(recipe: Recipe, shapes: Shapes, chooser: Layer, rules: tuple[Layer, ...] = ()) -> Sides:
  """Returns the sides of a recipe, planned and checked.

  Args:
    recipe: the settings.
    shapes: (name, shape, dtype) of each of a client's arrays, padded.
    chooser: layer that selects the clients.
    rules: robust rules of the server.

  Raises:
    IncompatibleStages: settings that do not go together.
  """
  if recipe.secure and recipe.compression and recipe.compression.method != 'random_k':
    raise IncompatibleStages(
      f"the code of {recipe.compression.method!r} does not add, so 'secure_aggregation' cannot sum "
      "it under masks: use method='random_k', or no compression."
    )
  arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
  number = arrays['y'].shape[0]
  layers = recipe.layers(chooser, *rules)
  clients = layers.draws.population
  layout = engine.Layout(1, True, engine.make_mesh(1))
  population = jax.eval_shape(lambda a: rows(a, jnp.full(clients, number, jnp.int32)), arrays)
  params = jax.eval_shape(recipe.model.init, keys.like())
  transforms = (recipe.transform,) if recipe.transform else ()
  setting = engine.make_setting(
    layers, params, population, Shape(clients, number, True), layout, transforms, pool=False
  )
  options = engine.compiler_options(jax.default_backend()) or None
  compiled = functools.partial(keys.jit, compiler_options=options)

  def states(params: Tree) -> dict[str, Tree]:
    cast = engine.broadcast(0, 0, params, root=keys.open_root(0))
    return {
      x.name: x.value(engine.context(setting.layers, x, 'init', cast, setting.specs))
      for x in setting.layers
    }

  return Sides(
    setting,
    compiled(functools.partial(_client, recipe, setting)),
    compiled(functools.partial(_cohort, setting), static_argnums=0),
    compiled(functools.partial(_server, setting)),
    keys.jit(states),
  )


def _client(
  recipe: Recipe,
  setting: engine.Setting,
  params: Tree,
  arrays: Batch,
  count: jax.Array,
  seed: jax.Array,
  round: jax.Array,
  id: jax.Array,
  root: jax.Array,
) -> Sent:
  """Runs all client sides of one client, and collects the facts for its metadata."""
  me = scalar_member(id)
  cohort = jax.tree.map(lambda x: x[None], me)
  # No layer of a recipe has client states or reads the server_state.
  held = rows(arrays, count[None])
  cast = engine.broadcast(seed, round, params, root=root, cohort=cohort, population=held)
  row = engine.Row(me, jnp.int32(0), count)
  data = engine.examples(cast, row, count, setting.shape, False, setting.transforms)
  value: Any = Task(params, data)
  trained, code = params, None
  norm, clipped, ok = jnp.float32(0), jnp.float32(0), jnp.bool_(True)
  coded = codecs.codec_of(config=setting.layers[-1]) if recipe.compression else None
  for layer in setting.layers:
    if layer.client is None:
      continue
    if coded is not None and layer is setting.layers[-1]:
      ctx = engine.context(setting.layers, layer, 'client', cast, setting.specs, me)
      x, shapes = codecs.flat(value.update)
      # The layer's side does not return the parts of the code; they are needed here, to be sent.
      code = coded.encode(codecs.Keys(ctx.key, ctx.round_key), x, shapes)
    own = {
      layer.name: layer.row(engine.context(setting.layers, layer, 'init', cast, setting.specs, me))
    }
    value, _, noted, fine = engine.client_pass(
      setting.layers, (layer,), cast, setting.specs, me, value, own
    )
    clipped = next((x.total for n, x in noted.items() if n.endswith('/clipped')), clipped)
    ok &= fine
    if layer is setting.layers.algorithm:
      trained = tree.sub(params, tree.scale(recipe.server_rate, value.update))
      norm = tree.norm(value.update)
  ok &= tree.finite(value)
  before, after = (_loss(recipe, Task(p, data)) for p in (params, trained))
  return Sent(code, value, before, after, norm, clipped, ok)


def _loss(recipe: Recipe, task: Task) -> jax.Array:
  """Returns the mean loss over a client's examples."""
  no_key: Any = None  # evaluation

  def part(seen: Mean, rows: Rows) -> Mean:
    losses = algorithm.masked_mean_loss(
      recipe.model.loss, task.params, rows.batch, rows.mask, no_key
    )
    return tree.add(seen, losses[1])

  seen: Mean = task.data.fold(part, Mean(jnp.float32(0), jnp.float32(0)), recipe.batch_size)
  return seen.total / seen.count


def stacked(messages: list[Message], rows: int) -> Message:
  """Returns messages as one stack [C, ...], padded to `rows` = C.

  Stacks of one size share one compiled program. Padded rows have weight 0 and take no part.
  """
  messages = messages + [tree.zeros(messages[0])] * (rows - len(messages))
  stack: Message = jax.tree.map(lambda *x: jnp.stack(x), *messages)
  return stack


def _cohort(
  setting: engine.Setting,
  name: str,
  params: Tree,
  stack: Message,
  rows: Tree,
  states: dict[str, Tree],
  seed: jax.Array,
  round: jax.Array,
) -> tuple[Message, Tree]:
  """Runs the cohort side of a layer; a message of weight 0 is padding."""
  layer = next(x for x in setting.layers if x.name == name)
  side = layer.sides['cohort']
  ids = jnp.arange(stack.weight.shape[0], dtype=jnp.int32)
  cohort = jax.vmap(scalar_member)(ids, stack.weight > 0)
  cast = engine.broadcast(
    seed, round, params, root=keys.open_root(seed), cohort=cohort, servers=states
  )

  def first(id: jax.Array) -> Tree:
    return layer.row(
      engine.context(setting.layers, layer, 'init', cast, setting.specs, scalar_member(id))
    )

  rows = jax.vmap(first)(ids) if rows is None else rows
  stack, rows, _ = engine.cohort_pass(setting.layers, layer, side, cast, setting.specs, stack, rows)
  return tree.total(stack), rows


def _server(
  setting: engine.Setting,
  params: Tree,
  message: Message,
  states: dict[str, Tree],
  seed: jax.Array,
  round: jax.Array,
) -> tuple[Tree, dict[str, Tree]]:
  """Runs all server sides, last layer first."""
  cast = engine.broadcast(seed, round, params, root=keys.open_root(seed), servers=states)
  like: Any = setting.specs[setting.layers[-1].name].update
  same: Any = jax.tree.structure(like)
  if same == jax.tree.structure(message.update):
    # Secure aggregation returns the sum in float32.
    cast_back = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), message.update, like)
    message = message._replace(update=cast_back)
  params, new, _, _ = engine.server_pass(setting.layers, cast, setting.specs, message)
  return params, new
