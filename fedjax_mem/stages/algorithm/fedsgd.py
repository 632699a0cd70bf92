"""Federated SGD: clients send the gradient over all their examples, the server takes the step."""

import jax
import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Context,
  Layer,
  Mean,
  Message,
  Pool,
  Pools,
  Shape,
  Stage,
  Task,
  Total,
  Trains,
  tree,
  validate,
)
from fedjax_mem.core.examples import Rows
from fedjax_mem.stages.algorithm import _base as training


def fedsgd(
  loss: training.LossFn,
  *,
  batch_size: int,
  server_optimizer: optax.GradientTransformation,
) -> Layer:
  """Returns the FedSGD layer: w <- w - eta sum (n_k / n) g_k.

  The message's update is the client's mean gradient, a tree like the parameters; its weight is the
  number of examples. The server's learning rate is in its optimizer, such as `optax.sgd(eta)`.

  Reference: McMahan et al. (2017), arXiv 1602.05629, section 2.

  Args:
    loss: (params, batch, key) -> [B] losses, one an example.
    batch_size: examples held at a time while a gradient is summed up, >= 1: it bounds memory and
      changes no result beyond rounding.
    server_optimizer: optax optimizer of the average gradient.

  Raises:
    ValueError: an argument is out of range.
  """
  training.check_loss(loss)
  validate.integer(batch_size=batch_size)
  server = training.server_step(training.server_optimizer_of(server_optimizer))

  def client(ctx: Context, task: Task, state):
    def part(carry: tuple, rows: Rows) -> tuple:
      key = jax.random.fold_in(ctx.key, rows.number)

      def summed(params):
        losses = training.masked_mean_loss(loss, params, rows.batch, rows.mask, key)[1]
        return losses.total, losses

      grads, seen = jax.grad(summed, has_aux=True)(task.params)
      return tree.add(carry, (grads, seen))

    start = (tree.zeros(task.params), Mean(jnp.float32(0), jnp.float32(0)))
    grads, seen = task.data.fold(part, start, batch_size)
    count = task.data.count.astype(jnp.float32)
    update = tree.scale(1 / jnp.maximum(count, 1.0), grads)
    metrics = {'train_loss': seen, 'steps': Total(jnp.int32(1))}
    return Message(update, count, {}), state, metrics

  def pooled(shape: Shape, params, batch):
    del shape
    if training.uses_key(loss, params, batch):
      return None
    return _pool(loss)

  trains = Stage(client, facts=(Trains(), Pools(pooled)))
  return Layer('algorithm', client=trains, server=server)


def _pool(loss: training.LossFn) -> Pool:
  """Returns the sum of all clients' gradients at once."""

  def pool(ctx: Context, batch, weights, mask, clients):
    grads, seen = training.pooled_gradient(loss, ctx.params, batch, weights, mask)
    return grads, {'train_loss': seen, 'steps': Total(clients)}

  return pool
