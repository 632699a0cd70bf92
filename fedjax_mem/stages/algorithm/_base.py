"""What the algorithms share: masked local steps on the client, the optax step on the server."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Accumulated,
  Batch,
  Context,
  Examples,
  Mean,
  Message,
  Metrics,
  Running,
  Stage,
  Task,
  Total,
  Tree,
  accumulated,
  groups,
  packing,
  running,
  tracing,
  tree,
  validate,
)
from fedjax_mem.core.examples import Rows
from fedjax_mem.kernels.nn.rewrite import fast_convolutions

# (params, batch, key) -> losses [B]; the key is None where the loss is known not to use it.
LossFn = Callable[[Tree, Batch, jax.Array | None], jax.Array]
OptimizerFn = Callable[[Any], optax.GradientTransformation]
Rate = float | Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sgd:
  """The clients' SGD, a callable learning rate -> optax optimizer whose settings can be read.

  Attributes:
    momentum: in [0, 1); its buffer starts at zero in every round.
    weight_decay: >= 0; this factor times the parameters is added to the gradient.
  """

  momentum: float = 0.0
  weight_decay: float = 0.0

  def __call__(self, rate: Any) -> optax.GradientTransformation:
    """Returns the optax optimizer at a learning rate."""
    sgd = optax.sgd(rate, momentum=self.momentum or None)
    decay = self.weight_decay
    return optax.chain(optax.add_decayed_weights(decay), sgd) if decay else sgd


def sgd_of(optimizer: OptimizerFn) -> Sgd:
  """Returns the settings of the clients' optimizer; raises `ValueError` unless it is SGD."""
  sgd = Sgd() if optimizer is optax.sgd else optimizer
  if not isinstance(sgd, Sgd):
    raise ValueError(
      f'optimizer must be Sgd(momentum, weight_decay) or optax.sgd, got {optimizer!r}.'
    )
  return sgd


# (parameters, running statistics, optimizer state, losses so far) of a client between two steps.
_Carry = tuple[Tree, Tree, Tree, Mean]
# Parameters -> gradient of the batch of a step.
GradientFn = Callable[[Tree], Tree]
# (parameters, gradient there, gradient of this batch elsewhere) -> what the optimizer gets instead.
Correct = Callable[[Tree, Tree, GradientFn], Tree]


class Trained(NamedTuple):
  """The result of local training.

  Attributes:
    params: the client's parameters after its last step.
    steps: int32, steps that had at least one example.
    metrics: `train_loss` (over the examples, before each step), `steps`, `wasted_steps`.
  """

  params: Tree
  steps: jax.Array
  metrics: Metrics


def loss_of(loss: LossFn, statistics: bool = False) -> LossFn:
  """Returns the loss with fast convolutions on a CPU.

  Raises:
    ValueError: it is no function, or its model keeps running statistics, unless they are allowed.
  """
  validate.function(loss=loss)
  if isinstance(loss, Accumulated):
    return dataclasses.replace(loss, loss=fast_convolutions(loss.loss))
  if not isinstance(loss, Running):
    return fast_convolutions(loss)
  if not statistics:
    raise ValueError(
      'the model must keep no running statistics (model.statistics): the gradients that this '
      'algorithm takes do not follow them; train it by fedavg or fedprox, or use GroupNorm.'
    )
  return loss


def check_rate(**named: Rate) -> None:
  """Raises `ValueError` unless the learning rate is a number > 0 or a schedule over rounds."""
  ((_, value),) = named.items()
  if not callable(value):
    validate.positive(**named)


def server_optimizer_of(
  server_optimizer: optax.GradientTransformation | None,
) -> optax.GradientTransformation:
  """Returns the server's optimizer, by default x <- x - update.

  Raises:
    ValueError: not an optax transformation, for example its factory.
  """
  if server_optimizer is None:
    return optax.sgd(1.0)
  if not isinstance(server_optimizer, optax.GradientTransformation):
    raise ValueError(
      f'server_optimizer must be an optax transformation such as optax.sgd(1.0), '
      f'got {server_optimizer!r}.'
    )
  return server_optimizer


def rate_at(rate: Rate, round: jax.Array) -> Any:
  """Returns the learning rate of a round: the number, or the schedule's float32 value."""
  return jnp.float32(rate(round)) if callable(rate) else rate


def batch_plan(data: Examples, batch_size: int) -> tuple[int, int]:
  """Returns (examples a batch, examples an epoch including padding), static."""
  size = min(batch_size, data.capacity)
  return size, size * -(-data.capacity // size)


def shuffled(key: jax.Array, data: Examples, padded: int) -> jax.Array:
  """Returns the positions 0 … count - 1 in random order, then padding, [padded] int32."""
  positions = jnp.arange(padded, dtype=jnp.int32)
  # Sorting random bits draws a permutation; the top bit keeps padding behind every example.
  bits = jax.random.bits(key, (padded,), jnp.uint32) >> 1
  bits = jnp.where(positions < data.count, bits, jnp.uint32(1 << 31))
  return jax.lax.sort((bits, positions), num_keys=1)[1]


def masked_mean_loss(
  loss: LossFn, params: Tree, batch: Batch, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, Mean]:
  """Returns the mean loss over the examples in `mask` [B] (0 if none), as a number and a `Mean`."""
  summed = accumulated.summed(loss, params, batch, mask, key)
  count = mask.sum(dtype=jnp.float32)
  return summed / jnp.maximum(count, 1.0), Mean(summed, count)


def _objective(
  loss: LossFn, params: Tree, statistics: Tree, batch: Batch, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[Mean, Tree]]:
  """Returns (mean loss over the mask, (as a `Mean`, running statistics after the batch))."""
  if isinstance(loss, Running):
    losses, statistics = loss.trained(params, statistics, batch, mask, key)
    loss = lambda *_: losses
  mean, seen = masked_mean_loss(loss, params, batch, mask, key)
  return mean, (seen, statistics)


def local_steps(
  loss: LossFn,
  gradient: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  task: Task,
  key: jax.Array,
  *,
  epochs: int | jax.Array,
  batch_size: int,
  correct: Correct | None = None,
  drift: Tree | None = None,
) -> Trained:
  """Returns the parameters after `epochs` passes of mini-batch steps over the client's examples.

  Every epoch is shuffled anew; its last batch may be smaller. A client that ends before the largest
  beside it keeps what it has. `correct`, `drift` and the optimizer see no running statistics.

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    gradient: of `_objective` of the loss.
    optimizer: the client's optimizer; its state starts anew in every round.
    task: initial parameters and the client's examples.
    key: PRNG key of this client in this round.
    epochs: passes over the examples; an int32 array where clients differ in it.
    batch_size: examples a step, B.
    correct: changes each gradient before the optimizer sees it.
    drift: added to each step, outside of the optimizer's momentum, a tree like the parameters.
  """
  data, (trained, statistics) = task.data, running.split(loss, task.params)
  size, padded = batch_plan(data, batch_size)
  steps = -(-data.longest // size)

  def step(number: jax.Array, order: jax.Array, key: jax.Array, carry: _Carry) -> _Carry:
    params, statistics, opt, metrics = carry
    first = number * size
    positions = jax.lax.dynamic_slice(order, (first,), (size,))
    mask = first + jnp.arange(size) < data.count
    batch, own = data.take(positions), jax.random.fold_in(key, number)
    at = functools.partial(gradient, statistics=statistics, batch=batch, mask=mask, key=own)
    grads, (seen, told) = at(params)
    grads = grads if correct is None else correct(params, grads, lambda p: at(p)[0])
    moved, new_opt = optimizer.update(grads, opt, params)
    moved = moved if drift is None else tree.add(moved, drift)
    new = optax.apply_updates(params, moved), told, new_opt
    # Without examples the gradient is zero, but momentum and weight decay would still move.
    if data.ragged:
      new = tree.select(first < data.count, new, (params, statistics, opt))
    return (*new, tree.add(metrics, seen))

  def epoch(number: jax.Array, carry: _Carry) -> _Carry:
    shuffle_key, own = jax.random.split(jax.random.fold_in(key, number))
    one_batch = padded == size  # then the order of the examples does not matter
    order = jnp.arange(size, dtype=jnp.int32) if one_batch else shuffled(shuffle_key, data, padded)
    return cast(_Carry, jax.lax.fori_loop(0, steps, lambda i, c: step(i, order, own, c), carry))

  start = (trained, statistics, optimizer.init(trained), Mean(jnp.float32(0), jnp.float32(0)))
  trained, statistics, _, seen = groups.loop(epochs, epoch, start)
  taken = epochs * -(-data.count // size)
  params = running.join(loss, trained, statistics)
  return Trained(params, taken, step_metrics(seen, taken, epochs * steps))


class Local:
  """The local training that FedAvg and methods built on it share, with its arguments checked.

  Attributes:
    loss: (params, batch, key) -> losses [B], made fast.
    batch_size: examples in a local step.
    epochs: passes over the examples.
    optimizer: learning rate -> the clients' optax optimizer.
  """

  def __init__(
    self,
    loss: LossFn,
    learning_rate: Rate,
    batch_size: int,
    epochs: int,
    optimizer: OptimizerFn,
    statistics: bool = False,
  ):
    """Checks the arguments, those of `fedavg` and of `loss_of`; raises `ValueError`."""
    self.loss = loss = loss_of(loss, statistics)
    self._gradient = tracing.once()(jax.grad(functools.partial(_objective, loss), has_aux=True))
    check_rate(learning_rate=learning_rate)
    self.epochs = validate.integer(epochs=epochs)
    self.batch_size = validate.integer(batch_size=batch_size)
    validate.function(optimizer=optimizer)
    self._rate, self.optimizer = learning_rate, optimizer

  def rate(self, round: jax.Array) -> Any:
    """Returns the clients' learning rate in a round."""
    return rate_at(self._rate, round)

  def __call__(
    self,
    ctx: Context,
    task: Task,
    *,
    epochs: int | jax.Array | None = None,
    correct: Correct | None = None,
    drift: Tree | None = None,
  ) -> Trained:
    """Returns what a client has after its local steps; the arguments are those of `local_steps`."""
    return local_steps(
      self.loss,
      self._gradient,
      self.optimizer(self.rate(ctx.round)),
      task,
      ctx.key,
      epochs=self.epochs if epochs is None else epochs,
      batch_size=self.batch_size,
      correct=correct,
      drift=drift,
    )

  def gradient(self, ctx: Context, task: Task) -> Tree:
    """Returns the gradient of the client's mean loss at the parameters that it was sent."""
    return mean_gradient(self.loss, task, ctx.key, self.batch_size)[0]


def near(mu: float, start: Tree) -> Correct:
  """Returns what adds the gradient of mu / 2 |w - start|^2."""
  return lambda params, grads, of: tree.add(grads, tree.scale(mu, tree.sub(params, start)))


def sent(task: Task, done: Trained, aux: dict[str, Any] | None = None) -> Message:
  """Returns a client's message: server - client, weighed by its examples, and what is beside it."""
  update = packing.at_once(jnp.subtract, task.params, done.params)
  return Message(update, task.data.count.astype(jnp.float32), aux or {})


def mean_gradient(
  loss: LossFn, task: Task, key: jax.Array, batch_size: int
) -> tuple[Tree, jax.Array, Mean]:
  """Returns (gradient of the mean loss at the task's parameters, float32 examples, losses).

  Args:
    loss: (params, batch, key) -> losses [B].
    task: parameters and examples; without examples the gradient is zero.
    key: PRNG key; that of a batch is `fold_in(key, its number)`.
    batch_size: examples held at a time: it changes no result beyond rounding.
  """

  def part(carry: tuple[Tree, Mean], rows: Rows) -> tuple[Tree, Mean]:
    own = jax.random.fold_in(key, rows.number)

    def summed(params: Tree) -> tuple[jax.Array, Mean]:
      losses = masked_mean_loss(loss, params, rows.batch, rows.mask, own)[1]
      return losses.total, losses

    grads, seen = jax.grad(summed, has_aux=True)(task.params)
    return tree.add(carry, (grads, seen))

  start = (tree.zeros(task.params), Mean(jnp.float32(0), jnp.float32(0)))
  grads, seen = task.data.fold(part, start, batch_size)
  count = task.data.count.astype(jnp.float32)
  return tree.scale(1 / jnp.maximum(count, 1.0), grads), count, seen


def step_metrics(seen: Mean, taken: jax.Array, run: jax.Array) -> Metrics:
  """Returns the metrics of local training.

  Args:
    seen: losses of the examples, before each step.
    taken: int32, steps that had examples.
    run: int32, steps that were computed; a client computes more than `taken` of them if a client
      beside it is larger.
  """
  wasted = Mean((run - taken).astype(jnp.float32), run.astype(jnp.float32))
  return {'train_loss': seen, 'steps': Total(taken), 'wasted_steps': wasted}


def server_step(optimizer: optax.GradientTransformation, loss: LossFn | None = None) -> Stage:
  """Returns the server side: one optimizer step on the average update gives the new parameters.

  The update is server - client, so the optimizer descends. If no client took part (the divisor is
  zero), the parameters and the optimizer's state stay as they are. Running statistics take all of
  the average, whatever the optimizer. Noise, a lossy code or a cohort larger than a fixed divisor
  may make a variance negative: it stays as it was. What is local is as before the first round.

  Args:
    optimizer: of the server.
    loss: of the clients, which says whether there are running statistics.
  """

  def apply(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    here, own = running.divide(loss, ctx.params)
    (old, statistics), (update, change) = (running.split(loss, x) for x in (here, message.update))
    params, new = descend(optimizer, old, message._replace(update=update), state)
    averaged = running.proper(tree.sub(statistics, change), statistics)
    averaged = tree.select(message.weight > 0, averaged, statistics)
    return running.unite(loss, running.join(loss, params, averaged), own), new, {}

  def init(ctx: Context) -> Tree:
    return optimizer.init(running.split(loss, running.divide(loss, ctx.params)[0])[0])

  return Stage(apply, init)


def zeros(ctx: Context) -> Tree:
  """Returns zeros like the parameters, for a first state."""
  return tree.zeros(ctx.params)


def beginning(optimizer: optax.GradientTransformation, *names: str) -> Callable[[Context], Tree]:
  """Returns ctx -> server state: the optimizer's, as `step`, and zeros like the parameters."""

  def init(ctx: Context) -> Tree:
    return {name: zeros(ctx) for name in names} | {'step': optimizer.init(ctx.params)}

  return init


def descend(
  optimizer: optax.GradientTransformation, params: Tree, message: Message, state: Tree
) -> tuple[Tree, Tree]:
  """Returns (parameters, optimizer state) after one step on `message.update`, as `server_step`."""
  updates, new_state = optimizer.update(message.update, state, params)
  new = optax.apply_updates(params, updates), new_state
  return tree.select(message.weight > 0, new, (params, state))
