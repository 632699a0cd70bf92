"""Federated averaging: clients train for some epochs, the server averages their updates."""

import jax
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
  Trains,
  Tree,
  tree,
)
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _own, _pooled


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

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = fedavg(loss, learning_rate=0.5, batch_size=1)
  >>> layers = train, fm.stages.select.uniform(2, 2), fm.stages.weigh.by_examples()
  >>> clients = fm.core.stack_clients([{'x': np.ones(1)}, {'x': np.full(3, 5.0)}])
  >>> sim = fm.simulate(layers, jnp.zeros(()), clients)
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # (0.5 + 3 * 4.375) / 4
  3.40625

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    epochs: passes of a client over its examples in a round, >= 1.
    optimizer: learning rate -> the clients' optax optimizer.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer, statistics=True)
  server = training.server_step(training.server_optimizer_of(server_optimizer), train.loss)

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    task = _own.given(train.loss, task, state)
    done = train(ctx, task)
    return *_own.told(train.loss, task, done, state), done.metrics

  def pooled(shape: Shape, params: Tree, batch: Batch) -> Pool | None:
    # One step from common parameters is a gradient, and gradients of clients add.
    one_step = epochs == 1 and shape.capacity <= batch_size
    if not one_step or not _pooled.adds(train.loss, params, batch):
      return None
    return _pool(train.loss, learning_rate, optimizer)

  facts = Trains(), Pools(pooled), *_own.facts(train.loss)
  trains = Stage(client, _own.init(train.loss), facts)
  return Layer('algorithm', client=trains, server=server)


def _pool(
  loss: training.LossFn, learning_rate: training.Rate, optimizer: training.OptimizerFn
) -> Pool | None:
  """Returns one local step of all clients at once; None unless the optimizer is known to be SGD."""
  sgd = training.Sgd() if optimizer is optax.sgd else optimizer
  if not isinstance(sgd, training.Sgd):
    return None

  def pool(
    ctx: Context, batch: Batch, weights: jax.Array, mask: jax.Array, clients: jax.Array
  ) -> tuple[Tree, Metrics]:
    grads, seen = _pooled.gradient(loss, ctx.params, batch, weights, mask)
    if sgd.weight_decay:
      decay = sgd.weight_decay * weights.sum()
      grads = tree.add(grads, tree.scale(decay, ctx.params))
    # The momentum buffer starts at zero, so momentum does not change the first step.
    update = tree.scale(training.rate_at(learning_rate, ctx.round), grads)
    return update, training.step_metrics(seen, clients, clients)

  return pool
