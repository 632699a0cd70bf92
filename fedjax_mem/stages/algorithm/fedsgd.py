"""Federated SGD: clients send the gradient over all their examples, the server takes the step."""

import jax
import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Batch,
  Context,
  Layer,
  Message,
  Metrics,
  Pool,
  Pools,
  Shape,
  Stage,
  Task,
  Total,
  Trains,
  Tree,
  validate,
)
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _pooled


def fedsgd(
  loss: training.LossFn,
  *,
  batch_size: int,
  server_optimizer: optax.GradientTransformation,
) -> Layer:
  """Returns the FedSGD layer: w <- w - eta sum (n_k / n) g_k.

  The message's update is the client's mean gradient, a tree like the parameters; its weight is the
  number of examples. The server's optimizer holds the learning rate, such as `optax.sgd(eta)`.

  Reference: McMahan et al. (2017), arXiv 1602.05629, section 2.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = fedsgd(loss, batch_size=8, server_optimizer=optax.sgd(0.5))
  >>> layers = train, fm.stages.select.uniform(2, 2), fm.stages.weigh.by_examples()
  >>> clients = fm.core.stack_clients([{'x': np.ones(1)}, {'x': np.full(3, 5.0)}])
  >>> sim = fm.simulate(layers, jnp.zeros(()), clients)
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # 0.5 * (1 + 3 * 5) / 4
  2.0

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    batch_size: examples held at a time while a gradient is summed, >= 1: it limits memory and
      changes no result beyond rounding.
    server_optimizer: optax optimizer of the average gradient.

  Raises:
    ValueError: an argument is out of range.
  """
  loss = training.loss_of(loss)
  validate.integer(batch_size=batch_size)
  server = training.server_step(training.server_optimizer_of(server_optimizer))

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    update, count, seen = training.mean_gradient(loss, task, ctx.key, batch_size)
    metrics = {'train_loss': seen, 'steps': Total(jnp.int32(1))}
    return Message(update, count, {}), state, metrics

  def pooled(shape: Shape, params: Tree, batch: Batch) -> Pool | None:
    del shape
    if not _pooled.adds(loss, params, batch):
      return None
    return _pool(loss)

  trains = Stage(client, facts=(Trains(), Pools(pooled)))
  return Layer('algorithm', client=trains, server=server)


def _pool(loss: training.LossFn) -> Pool:
  """Returns the function that computes the sum of all clients' gradients at once."""

  def pool(
    ctx: Context, batch: Batch, weights: jax.Array, mask: jax.Array, clients: jax.Array
  ) -> tuple[Tree, Metrics]:
    grads, seen = _pooled.gradient(loss, ctx.params, batch, weights, mask)
    return grads, {'train_loss': seen, 'steps': Total(clients)}

  return pool
