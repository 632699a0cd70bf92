"""Federated averaging: clients train for some epochs, the server averages what they learned."""

from functools import partial

import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Context,
  Layer,
  Message,
  Pool,
  Pools,
  Shape,
  Stage,
  Task,
  Trains,
  tree,
  validate,
)
from fedjax_mem.stages.algorithm import _base as training


def fedavg(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  epochs: int = 1,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the FedAvg layer, with any client and any server optimizer (FedOpt).

  The message's update is server - client, a tree like the parameters; its weight is the client's
  number of examples.

  References: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1; Reddi et al. (2021), arXiv
  2003.00295, Algorithm 1.

  Args:
    loss: (params, batch, key) -> [B] losses, one an example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: examples a local step, >= 1.
    epochs: passes of a client over its examples in a round, >= 1.
    optimizer: learning rate -> the clients' optax optimizer.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  training.check_loss(loss)
  training.check_rate(learning_rate=learning_rate)
  validate.integer(epochs=epochs)
  validate.integer(batch_size=batch_size)
  validate.function(optimizer=optimizer)
  server = training.server_step(training.server_optimizer_of(server_optimizer))
  train = partial(training.local_steps, loss, epochs=epochs, batch_size=batch_size)

  def client(ctx: Context, task: Task, state):
    rate = training.rate_at(learning_rate, ctx.round)
    done = train(optimizer(rate), task, ctx.key)
    update = tree.sub(task.params, done.params)
    return Message(update, task.data.count.astype(jnp.float32), {}), state, done.metrics

  def pooled(shape: Shape, params, batch):
    one_step = epochs == 1 and shape.capacity <= batch_size
    if not one_step or training.uses_key(loss, params, batch):
      return None
    return _pool(loss, learning_rate, optimizer)

  trains = Stage(client, facts=(Trains(), Pools(pooled)))
  return Layer('algorithm', client=trains, server=server)


def _pool(
  loss: training.LossFn, learning_rate: training.Rate, optimizer: training.OptimizerFn
) -> Pool | None:
  """Returns one local step of all clients at once, or None for an optimizer that does not add."""
  sgd = training.Sgd() if optimizer is optax.sgd else optimizer
  if not isinstance(sgd, training.Sgd):
    return None

  def pool(ctx: Context, batch, weights, mask, clients):
    grads, seen = training.pooled_gradient(loss, ctx.params, batch, weights, mask)
    if sgd.weight_decay:
      decay = sgd.weight_decay * weights.sum()
      grads = tree.add(grads, tree.scale(decay, ctx.params))
    # The first step of momentum is a plain one.
    update = tree.scale(training.rate_at(learning_rate, ctx.round), grads)
    return update, training.step_metrics(seen, clients, clients)

  return pool
