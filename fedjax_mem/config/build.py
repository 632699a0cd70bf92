"""From a configuration to the parts of a run: data, model, layers.

Methods import each other nowhere: this module combines them.
"""

from typing import Any

import jax
import numpy as np

from fedjax_mem import data as datasets
from fedjax_mem import models
from fedjax_mem.config import privacy, registry
from fedjax_mem.config.load import Config
from fedjax_mem.config.optimizers import client_optimizer, learning_rate, server_optimizer
from fedjax_mem.config.parts import Parts, beside, known, undrawn
from fedjax_mem.config.sections import DataSection
from fedjax_mem.config.start import pinned
from fedjax_mem.config.typed import MOST
from fedjax_mem.core import (
  Attacks,
  Draws,
  Layer,
  Prepares,
  Round,
  Weighs,
  compose,
  keys,
  running,
  tree,
  validate,
)
from fedjax_mem.data.source import FederatedData
from fedjax_mem.models import saved
from fedjax_mem.models.base import Model, Outline, fitted, trained_with
from fedjax_mem.stages.algorithm import ALGORITHMS
from fedjax_mem.stages.compress import as_layer
from fedjax_mem.stages.select import SAMPLERS, TRACES, draw_durations, dropout, stragglers
from fedjax_mem.stages.weigh import WEIGHINGS

# The name of data that a caller gives as objects.
GIVEN = 'given'


def build(
  config: Config,
  data_dir: str | None = None,
  start: saved.Arrays | None = None,
  data: datasets.Table | FederatedData | None = None,
  draw: bool = True,
) -> Parts:
  """Returns the parts of an experiment.

  Args:
    config: the experiment.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    start: the arrays to start from, as `config.start.pinned` gives them; None: it is asked.
    data: the data, if `data.name` is 'given'; a table is partitioned as the configuration says.
    draw: whether the initial parameters are drawn, which compiles a program.

  Raises:
    ValueError: parts that do not fit each other, or options that a part does not take.
  """
  return assemble(config, load_data(config, data_dir, data), start, draw)


def assemble(
  config: Config, data: FederatedData, start: saved.Arrays | None = None, draw: bool = True
) -> Parts:
  """Returns the parts of an experiment on data that are already loaded; else as `build`."""
  if config.selection.cohort_size > data.num_clients:
    raise ValueError(
      f'selection.cohort_size must be at most the {data.num_clients} clients of the data, '
      f'got {config.selection.cohort_size!r}.'
    )
  _check_steps(config, data)
  model = build_model(config, data)
  start = _start(config, start)
  layers = build_layers(config, model, data.num_clients, data)
  like = jax.eval_shape(model.init, keys.like())
  if start is None and not draw:
    drawing = undrawn()
  elif start is None:
    root, begun = keys.seed_key(config.seed), getattr(model.init, 'begun', None)
    drawing = beside(begun(root, _own)) if begun else known(model.init(_own(root)))
  else:
    name = 'params' if config.model.init is None else 'model.init'
    drawing = known(saved.fitted(start, like, name))
  return Parts(data, model, layers, like, drawing)


def _own(root: jax.Array) -> jax.Array:
  """Returns the key of the initial parameters."""
  return keys.role_key(keys.layer_key(root, 0, 'model'), 'init')


def _start(config: Config, start: saved.Arrays | None) -> saved.Arrays | None:
  """Returns the arrays that a run starts from; None: it draws its parameters."""
  start = pinned(config)[1] if start is None else start
  if start is None and config.model.init_hash is not None:
    raise ValueError(
      'model.init must be where the arrays of model.init_hash = '
      f'{config.model.init_hash!r} are, got none: the run began with parameters given to it.'
    )
  return start


def _check_steps(config: Config, data: FederatedData) -> None:
  """Raises `ValueError` if a client has more local steps in a round than an int32 counts."""
  client = config.client
  steps = client.epochs * -(-int(data.counts.max()) // client.batch_size)
  if steps > MOST:
    raise ValueError(
      f'client.epochs must make at most {MOST} local steps of a client in a round, got '
      f'{client.epochs!r}, which make {steps}.'
    )


def load_data(
  config: Config, data_dir: str | None = None, given: datasets.Table | FederatedData | None = None
) -> FederatedData:
  """Returns the population that the data section describes, of data that are given if any are."""
  section: DataSection = config.data
  if (section.name == GIVEN) != (given is not None):
    raise ValueError(
      f"data.name must be 'given' for data that are given to `run` or `resume`, and only then, got "
      f'{section.name!r} and {"no data" if given is None else f"a {type(given).__name__}"}.'
    )
  options = {
    name: getattr(section, name)
    for name in ('alpha', 'labels_per_client', 'examples_per_client', 'min_examples')
    if getattr(section, name) is not None
  }
  seed = config.seed if section.partition_seed is None else section.partition_seed
  said: dict[str, Any] = {
    'partition': section.partition,
    'num_clients': section.num_clients,
    'seed': seed,
    'validation': section.validation,
  }
  for option in section.options:
    if option in options or option in (*said, 'name', 'data_dir'):
      raise ValueError(f'data.options.{option} must be left out: the experiment sets it.')
  options |= section.options
  with registry.naming('data'):
    if given is None:
      data = datasets.load(section.name, data_dir=data_dir, **said, **options)
    else:
      data = datasets.divided(given, **said, **options)
  with registry.naming('evaluation.clients'):
    return datasets.hold_out_of_clients(data, config.evaluation.clients, seed)


def build_model(config: Config, data: FederatedData | Outline) -> Model:
  """Returns the model for the data and their task, from the registry or from a user's factory."""
  section = config.model
  for option in ('name', 'input_shape', 'num_classes', 'statistics'):
    if option in section.options:
      raise ValueError(f'model.options.{option} must be left out: the experiment sets it.')
  if ':' not in section.name:
    validate.one_of(models.MODELS, **{'model.name': section.name})
    if section.statistics != 'refuse':
      raise ValueError(
        f"model.statistics must be 'refuse' for {section.name!r}, which keeps no running "
        f'statistics, got {section.statistics!r}.'
      )
    with registry.naming('model'):
      return models.build(
        section.name, data.input_shape, data.num_classes, task=data.task, **section.options
      )
  given: dict[str, Any] = {'input_shape': data.input_shape, 'num_classes': data.num_classes}
  if section.statistics != 'refuse':
    given['statistics'] = section.statistics
  model: Model = registry.made(
    'model', 'name', section.name, {}, section.options, registry.MODEL, **given
  )
  if tuple(model.input_shape) != tuple(data.input_shape) or model.num_classes < data.num_classes:
    raise ValueError(
      f'model.name must be of a model for inputs {data.input_shape!r} and {data.num_classes} '
      f'labels to fit the data, got one for {model.input_shape!r} and {model.num_classes}.'
    )
  if model.statistics != section.statistics:
    raise ValueError(
      f'model.statistics must be what the factory of model.name, {section.name!r}, gives to '
      f'from_linen, {model.statistics!r}, got {section.statistics!r}.'
    )
  return fitted(model, data.task)


def build_layers(
  config: Config, model: Model, num_clients: int, data: FederatedData | None = None
) -> Round:
  """Returns the layers of a round: algorithm, selection, weighing, and the stages in their places.

  A sampler that learns from tasks is placed just before the algorithm. One that learns from
  weighted messages is placed after the weighing and after the last attack on messages, so that it
  sees what arrives. Availability, drop-out and stragglers are placed just after the draw.

  Args:
    config: the experiment.
    model: the model that is trained.
    num_clients: N.
    data: for samplers that need the clients' sizes or a validation split; None: they get neither.
  """
  chosen = _selection(config, model, num_clients, data)
  chooser = next(x for x in chosen if x.fact(Draws) is not None)
  given = stage_arguments(model, chooser)
  config = privacy.settled(config, chooser, given)
  tasks = [x for x in chosen if x.fact(Prepares) is not None]
  messages = [x for x in chosen if x not in tasks and {'client', 'cohort'} & set(x.sides)]
  blind = [x for x in chosen if x not in tasks and x not in messages]
  stages = [(s, _stage(config, i, given)) for i, s in enumerate(config.stages)]
  first = [section.before_algorithm or _prepares(made) for section, made in stages]
  before = [made for (_, made), early in zip(stages, first, strict=True) if early]
  after = [made for (_, made), early in zip(stages, first, strict=True) if not early]
  weighting = config.weighting
  own = {'num_clients': num_clients, **_weights(config, data)}
  weighing = registry.made(
    'weighting', 'name', weighting.name, WEIGHINGS, weighting.options, registry.LAYER, **own
  )
  layers = compose(
    *before,
    *tasks,
    _algorithm(config, model, _total_weight(weighing, num_clients, data)),
    *blind,
    weighing,
    *after[: _attacked(after)],
    *messages,
    *after[_attacked(after) :],
  )
  return _in_the_world(config, layers, num_clients, data)


def _attacked(stages: list[Any]) -> int:
  """Returns the number of stages up to and including the last attack on messages, or 0."""
  attacks = [any(x.fact(Attacks) is not None for x in _layers(made)) for made in stages]
  return max((i for i, found in enumerate(attacks, 1) if found), default=0)


def _prepares(made: Any) -> bool:
  """Returns whether a stage states that it works on tasks; it then runs before the algorithm."""
  return any(x.fact(Prepares) is not None for x in _layers(made))


def _layers(made: Any) -> list[Layer]:
  """Returns the layers of a stage; an object that is no layer is refused later, by `compose`."""
  parts = made if isinstance(made, tuple) and not isinstance(made, Layer) else (made,)
  return [x for x in parts if isinstance(x, Layer)]


def stage_arguments(model: Model, chooser: Layer) -> dict[str, int]:
  """Returns the arguments that an experiment gives to stages that take them.

  Options of a stage override them. `dimension` is the number of parameters sent, `clients`
  the largest number of clients in a round, `num_clients` the population's size, `num_classes` the
  number of labels.
  """
  params = jax.eval_shape(model.init, keys.like())
  draws = privacy.law(chooser)
  return {
    'dimension': tree.size(running.divide(model.loss, params)[0]),
    'clients': draws.capacity,
    'num_clients': draws.population,
    'num_classes': model.num_classes,
  }


def _stage(config: Config, number: int, given: dict[str, int]) -> Layer | tuple[Layer, ...]:
  section, key = config.stages[number], f'stages[{number}]'
  free = privacy.unsaid(given, section.options)
  made = registry.made(
    key, 'use', section.use, registry.LAYERS, section.options, registry.STAGE, **free
  )
  layer: Layer | tuple[Layer, ...] = as_layer(made)
  return layer


def _weights(config: Config, data: FederatedData | None) -> dict[str, Any]:
  """Returns {'weights': those of the clients}, for weightings that take them; {} without."""
  if data is None or data.weights is None or 'weights' in config.weighting.options:
    return {}
  return {'weights': data.weights}


def _total_weight(weighing: Any, num_clients: int, data: FederatedData | None) -> dict[str, float]:
  """Returns {'total_weight': the weights of all clients together}; {} where they are not known."""
  weighs = weighing.fact(Weighs) if isinstance(weighing, Layer) else None
  if weighs is not None and weighs.alike:
    return {'total_weight': float(num_clients)}
  if weighs is not None and weighs.total is not None:
    return {'total_weight': weighs.total}
  if weighs is None or weighs.of is None or data is None:
    return {}
  each = np.asarray(weighs.of(np.asarray(data.counts, np.float32)), np.float64)
  return {'total_weight': float(each.sum())}


def _algorithm(config: Config, model: Model, total: dict[str, float]) -> Layer:
  section, client = config.algorithm, config.client
  how: dict[str, Any] = {x: getattr(client, x) for x in ('dtype', 'remat', 'accumulate')}
  with registry.naming('client'):
    trained = trained_with(model, **how)
  layer: Layer = registry.made(
    'algorithm',
    'name',
    section.name,
    ALGORITHMS,
    section.options,
    registry.LAYER,
    loss=trained.loss,
    learning_rate=learning_rate(client, config.rounds),
    batch_size=client.batch_size,
    epochs=client.epochs,
    optimizer=client_optimizer(client),
    server_optimizer=server_optimizer(config.server),
    **privacy.unsaid(total, section.options),
  )
  return layer


def _selection(
  config: Config, model: Model, num_clients: int, data: FederatedData | None
) -> tuple[Layer, ...]:
  """Returns the sampler's layers."""
  section = config.selection
  given = {
    'num_clients': num_clients,
    'cohort_size': section.cohort_size,
    'rate': section.cohort_size / num_clients,
    'loss': model.loss,
    'sizes': None if data is None else data.counts,
    'validation': _validation(data),
  }
  if config.server.optimizer == 'sgd':
    given['step'] = config.server.learning_rate
  seconds = _durations(config, num_clients, data)
  if seconds is not None:
    given['durations'] = seconds
  rows = privacy.capacity(config, num_clients)
  if rows is not None and 'capacity' not in section.options:
    given['capacity'] = rows
  made = registry.made(
    'selection', 'name', section.name, SAMPLERS, section.options, registry.SAMPLER, **given
  )
  layers = made if isinstance(made, tuple) and not isinstance(made, Layer) else (made,)
  if sum(isinstance(x, Layer) and x.fact(Draws) is not None for x in layers) != 1:
    raise ValueError(
      f'selection.name must be a factory of a layer that draws the cohort, got {made!r}.'
    )
  return layers


def _in_the_world(
  config: Config, layers: Round, num_clients: int, data: FederatedData | None
) -> Round:
  """Returns the layers with availability, drop-out and stragglers of the configuration added."""
  section = config.selection
  place = layers.place(layers.drawing) + 1
  first: list[Any] = []
  then: list[Any] = []
  if section.availability:
    options = dict(section.availability)
    name, own = options.pop('use', ''), {'num_clients': num_clients}
    made = registry.made(
      'selection.availability', 'use', name, TRACES, options, registry.LAYER, **own
    )
    (first if options.get('before_draw') else then).append(made)
  if section.dropout:
    then.append(dropout(section.dropout))
  seconds = _durations(config, num_clients, data)
  if seconds is not None:
    elsewhere = ('median_seconds', 'spread', 'sizes')
    rest = {k: x for k, x in section.clock.items() if k not in elsewhere}
    # A duration is proportional to the client's examples over the mean of all clients: it tells
    # nothing of the data if all clients have equally many.
    alike = data is None or len(set(np.asarray(data.counts).tolist())) == 1
    sizes = section.clock.get('sizes', 'private')
    validate.one_of(('private', 'public'), **{'selection.clock.sizes': sizes})
    public = '' if alike or sizes == 'private' else 'the number of examples of each client'
    given = {'num_clients': num_clients, 'durations': seconds, 'public': public}
    given['looks'] = 'nothing' if alike or public else "others' data"
    then.append(registry.call('selection.clock', stragglers, rest, **given))
  return compose(*first, *layers[:place], *then, *layers[place:])


def _durations(config: Config, num_clients: int, data: FederatedData | None) -> Any:
  """Returns the virtual seconds of each client in a round, or None without a clock."""
  if not config.selection.clock:
    return None
  drawn = {k: x for k, x in config.selection.clock.items() if k in ('median_seconds', 'spread')}
  given: dict[str, Any] = {'num_clients': num_clients, 'seed': config.seed}
  given['sizes'] = None if data is None else data.counts
  return registry.call('selection.clock', draw_durations, drawn, **given)


def _validation(data: FederatedData | None) -> Any:
  """Returns the server's validation split as the model takes it, or None."""
  if data is None or data.validation is None:
    return None
  return jax.device_get(data.preprocess(data.validation))
