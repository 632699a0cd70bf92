"""`Model`: pure functions, which are made from an `(init, apply)` pair and a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Batch, Running, Tree, keys, tracing, tree, validate
from fedjax_mem.kernels.nn import rewrite
from fedjax_mem.models.statistics import Kept
from fedjax_mem.models.training import Training
from fedjax_mem.tasks import Classification, LearningTask, NextToken, as_task

Values = dict[str, jax.Array]
CHECKED = 3  # examples that a model is tried with; unlikely, to catch one that mixes up its axes
_MOST = 1 << 40  # parameters: 4 TiB in float32


class Model(NamedTuple):
  """A model as pure functions; B examples, K outputs (classes), T tokens in a sequence.

  Attributes:
    init: key -> params.
    apply: (params, x [B, ...], key=None) -> outputs [B, K], or [B, T, K] for sequences. A key means
      training (dropout is drawn from it), None means evaluation.
    loss: (params, batch, key=None) -> [B] float32, the task's loss of each example.
    metrics: (params, batch) -> dict of [B] float32: 'loss' as above, and every other score of the
      task that is a mean over examples, such as 'accuracy'.
    input_shape: shape of one example.
    num_classes: K, number of outputs: of classes or labels, or of numbers.
    name: name in tables and messages.
    task: what it learns; None: `loss` and `metrics` are its own, and no other scores are computed.
    measure: (params, batch) -> (metrics, what the task's other scores need), dicts of [B, ...], of
      one application; None without a task.
    kept: what becomes of running statistics; None: the model keeps none. With them, `init` gives
      {'params', 'batch_stats'} and `loss` is a `core.Running`.
    training: how `loss` is computed, and of which loss it was made; None: as it is.
    rules: how parameters may be divided over devices, `Execution.rules`; (): it does not say.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[..., jax.Array]
  loss: Callable[..., jax.Array]
  metrics: Callable[[Tree, Batch], dict[str, jax.Array]]
  input_shape: tuple[int, ...]
  num_classes: int
  name: str
  task: LearningTask | None = None
  measure: Callable[[Tree, Batch], tuple[Values, Values]] | None = None
  kept: Kept | None = None
  training: tuple[Training, Callable[..., jax.Array]] | None = None
  rules: tuple[tuple[str, int], ...] = ()

  @property
  def statistics(self) -> str:
    """What becomes of running statistics: 'refuse' of a model that keeps none."""
    return 'refuse' if self.kept is None else self.kept.how

  def copy(self) -> 'Model':
    """Returns the model itself: it has no state that could change."""
    return self

  def for_task(self, task: LearningTask | str) -> 'Model':
    """Returns the model with the loss and the scores of a task.

    >>> model = fm.models.build('logistic', (2,), 1, task='regression')
    >>> batch = {'x': jnp.ones((1, 2)), 'y': jnp.array([3.0])}
    >>> model.loss(model.init(jax.random.key(0)), batch).tolist()  # it starts from zeros
    [9.0]

    Args:
      task: the task, or its name.

    Raises:
      ValueError: no such task, or one that the number of outputs does not fit.
    """
    task = as_task(task)
    task.check_outputs(self.num_classes)
    plain = getattr(self.apply, '__wrapped__', self.apply)
    made = self._replace(**_scored(plain, task, self.kept), training=None)
    return made if self.training is None else trained_with(made, **self.training[0]._asdict())


class Outline(NamedTuple):
  """What a model has to know of the data.

  Attributes:
    input_shape: shape of one preprocessed example.
    num_classes: K, number of classes, or of other outputs.
    task: what is learned.
  """

  input_shape: tuple[int, ...]
  num_classes: int
  task: LearningTask


def fitted(model: Model, task: LearningTask) -> Model:
  """Returns the model for data of a task: as it is if it states one of that kind itself.

  A model of one's own loss (`Model.task` is None) stays as it is, too.
  """
  same = type(model.task) is type(task) and model.task != type(task)()
  return model if model.task is None or same else model.for_task(task)


def _scored(
  apply: Callable[..., jax.Array], task: LearningTask, kept: Kept | None
) -> dict[str, Any]:
  """Returns the fields of a `Model` that come from `apply`, as it was given, and a task."""

  def loss(params: Tree, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    return task.loss(apply(params, batch['x'], key), batch['y'])

  def metrics(params: Tree, batch: Batch) -> dict[str, jax.Array]:
    return task.values(apply(params, batch['x'], None), batch['y'])

  def measure(params: Tree, batch: Batch) -> tuple[Values, Values]:
    outputs, labels = apply(params, batch['x'], None), batch['y']
    return task.values(outputs, labels), task.kept(outputs, labels)

  # Each is rewritten as a whole: it is then traced once, and its `__wrapped__` is as it was given.
  fast = rewrite.fast_convolutions
  given: dict[str, Callable[..., Any]] = {
    'apply': apply,
    'loss': loss,
    'metrics': metrics,
    'measure': measure,
  }
  made = {name: fast(function) for name, function in given.items()}
  if kept is not None:
    made['loss'] = _running(made['loss'], task, kept)
  return {'task': task, **made}


def _running(evaluated: Callable[..., jax.Array], task: LearningTask, kept: Kept) -> Running:
  """Returns the loss of a model that keeps running statistics."""

  def trained(
    params: Tree, statistics: Tree, batch: Batch, mask: jax.Array, key: Any
  ) -> tuple[jax.Array, Tree]:
    outputs, statistics = kept.forward(params, statistics, batch['x'], mask, key)
    return task.loss(outputs, batch['y']), statistics

  return Running(evaluated, rewrite.fast_convolutions(trained), kept.how == 'local')


def build(
  name: str,
  init: Callable[[jax.Array], Tree],
  apply: Callable[..., jax.Array],
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
  kept: Kept | None = None,
) -> Model:
  """Returns the model of an `(init, apply)` pair, with the loss and the scores of a task.

  Args:
    name: name in tables and messages.
    init: key -> params, a pytree of float arrays.
    apply: (params, x, key=None) -> outputs.
    input_shape: shape of one example, without the batch axis.
    num_classes: K, number of outputs.
    input_dtype: dtype of x: float32, or int32 for tokens.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns; None: the next token for outputs [B, T, K], else classification, and the
      data's task takes its place where data are given (`fitted`).
    kept: what becomes of running statistics; None: there are none.

  Raises:
    ValueError: a shape is not of positive integers, `init` or `apply` fails on it, or the outputs
      are not [B, K] or [B, T, K]. The check traces shapes and computes nothing.
  """
  input_shape = tuple(validate.integer(input_shape=n) for n in input_shape)
  validate.integer(num_classes=num_classes)
  x = jax.ShapeDtypeStruct((CHECKED, *input_shape), input_dtype)
  init = tracing.once()(init)  # its check, its shapes and its program share one trace
  try:
    params = jax.eval_shape(init, keys.like())
    outputs = jax.eval_shape(lambda p, x: apply(p, x, None), params, x)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(
      f'input_shape must be one that the model {name!r} and its options can take, got '
      f'{input_shape!r}: {error}'
    ) from error
  if (size := tree.size(params)) > _MOST:
    raise ValueError(
      f'the options of the model {name!r} must make at most 2**40 parameters, got {size:.3g}.'
    )
  shape = getattr(outputs, 'shape', None)
  if shape not in ((CHECKED, num_classes), (CHECKED, input_shape[0], num_classes)):
    raise ValueError(
      f'the output of the model {name!r} must be [B, {num_classes}] to fit the labels '
      f'(num_classes={num_classes}), got {shape!r} for an input of shape {x.shape!r}.'
    )
  if task is None:
    task = Classification() if len(shape) == 2 else NextToken(padding_id)
  else:
    task = as_task(task)
    task.check_outputs(num_classes)
  made = {**_scored(apply, task, kept), 'kept': kept, 'name': name}
  return Model(Drawn(init), input_shape=input_shape, num_classes=num_classes, **made)


def as_it_is(model: Model) -> Model:
  """Returns a model whose convolutions are as it was given, slow on a CPU.

  `build` rewrites them there (`fast_convolutions`), for reverse mode only.

  >>> plain = as_it_is(fm.models.build('logistic', (2,), 3))
  >>> params = plain.init(jax.random.key(0))
  >>> jax.jvp(lambda x: plain.apply(params, x), [jnp.ones((1, 2))], [jnp.ones((1, 2))])[1].shape
  (1, 3)
  """
  if model.training is not None:
    settings, loss = model.training
    return trained_with(as_it_is(model._replace(loss=loss, training=None)), **settings._asdict())
  loss, plain = model.loss, rewrite.as_it_is
  if isinstance(loss, Running):
    loss = Running(plain(loss.evaluated), plain(loss.trained), loss.local)
  else:
    loss = plain(loss)
  return model._replace(
    apply=rewrite.as_it_is(model.apply),
    loss=loss,
    metrics=rewrite.as_it_is(model.metrics),
    measure=None if model.measure is None else rewrite.as_it_is(model.measure),
  )


def trained_with(
  model: Model, *, dtype: str = 'float32', remat: bool = False, accumulate: int = 1
) -> Model:
  """Returns a model whose loss, by which clients train, is computed in another way.

  Its parameters, evaluation and outputs stay as they are. A setting at its default is as the model
  has it. A configuration sets the same in its section [client].

  >>> model = trained_with(fm.models.build('mlp', (2,), 3), dtype='bfloat16', accumulate=4)
  >>> params, batch = model.init(jax.random.key(0)), {'x': jnp.ones((8, 2)), 'y': jnp.arange(8) % 3}
  >>> model.loss(params, batch).dtype, model.apply(params, batch['x']).dtype
  (dtype('float32'), dtype('float32'))

  Args:
    model: the model.
    dtype: 'bfloat16': forward and backward pass in 16 bits, of parameters that stay in float32
      (Micikevicius et al. 2018, arXiv 1710.03740); 'float32': as the model does.
    remat: whether few activations are kept, and the others computed again for the gradient (Chen et
      al. 2016, arXiv 1604.06174): equal results, about a third more work, less memory for a deep
      model.
    accumulate: parts in which a batch is processed, one after another, >= 1: equal gradients up to
      rounding, in the memory of one part. Each part of a loss with dropout has its own key.

  Raises:
    ValueError: a setting is out of range, or a batch in parts of a model with running statistics.
  """
  before, loss = model.training or (Training(), model.loss)
  asked, default = Training(dtype, remat, accumulate).checked()._asdict(), Training()
  settings = before._replace(**{k: x for k, x in asked.items() if x != getattr(default, k)})
  if settings == default:
    return model
  return model._replace(loss=settings.of(loss), training=(settings, loss))


class Drawn:
  """A model's `init` as one compiled program, unless it is traced into another."""

  def __init__(self, init: Callable[[jax.Array], Tree]):
    """Prepares `init`, key -> parameters."""
    # It runs once, and compiles a loop over random bits for each parameter: what the full effort of
    # the compiler saves of its run is a hundredth of what it takes.
    cpu = jax.default_backend() == 'cpu'
    self._hasty = {'xla_backend_optimization_level': 1} if cpu else None
    self._init, self._compiled = init, jax.jit(init, compiler_options=self._hasty)

  @keys.fixed()
  def __call__(self, key: jax.Array) -> Tree:
    """Returns the parameters."""
    return (self._init if isinstance(key, jax.core.Tracer) else self._compiled)(key)

  @keys.fixed()
  def begun(self, root: jax.Array, own: Callable[[jax.Array], jax.Array]) -> Callable[[], Tree]:
    """Returns a function that returns the parameters of key `own(root)`; it only has to compile.

    So another thread may call it, which has none of the settings of this one (`jax.enable_x64`).
    """
    program = jax.jit(lambda root: self._init(own(root)), compiler_options=self._hasty)
    lowered = program.lower(root)
    return lambda: lowered.compile()(root)
