"""FedProx: local training is held near the server's parameters, and may be cut short."""

import jax
import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Context,
  Layer,
  Message,
  Metrics,
  Stage,
  Task,
  Trains,
  Tree,
  running,
  validate,
)
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _own


def fedprox(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  epochs: int = 1,
  mu: float = 0.01,
  partial_work: float = 0.0,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the FedProx layer: clients minimize their loss + mu / 2 |w - w_server|^2.

  With mu = 0 and no partial work it is FedAvg.

  References: Li et al. (2020), arXiv 1812.06127, Algorithm 2 and equation 2; partial work as in
  section 5.2, except that each client is a straggler with probability `partial_work`, by itself,
  where the paper takes exactly that share of a cohort.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = fedprox(loss, learning_rate=0.5, batch_size=1, epochs=2, mu=1.0)
  >>> layers = train, fm.stages.select.uniform(1, 1), fm.stages.weigh.equal()
  >>> sim = fm.simulate(layers, jnp.zeros(()), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # 0.5, where the pulls are equal
  0.5

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    epochs: E, passes of a client over its examples in a round, >= 1.
    mu: weight of the proximal term, >= 0.
    partial_work: probability in [0, 1] that a client makes only 1 … E passes in a round, a number
      drawn uniformly; its update counts in full.
    optimizer: learning rate -> the clients' optax optimizer.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer, statistics=True)
  validate.non_negative(mu=mu)
  validate.fraction(partial_work=partial_work)
  server = training.server_step(training.server_optimizer_of(server_optimizer), train.loss)

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    task = _own.given(train.loss, task, state)
    near = training.near(mu, running.split(train.loss, task.params)[0])
    passes = _passes(ctx.key, epochs, partial_work) if partial_work else epochs
    done = train(ctx, task, correct=near, epochs=passes)
    return *_own.told(train.loss, task, done, state), done.metrics

  facts = Trains(), *_own.facts(train.loss)
  trains = Stage(client, _own.init(train.loss), facts)
  return Layer('algorithm', client=trains, server=server)


def _passes(key: jax.Array, epochs: int, share: float) -> jax.Array:
  """Returns a client's passes in a round, int32: `epochs`, or for a straggler 1 … `epochs`."""
  late, number = jax.random.split(jax.random.fold_in(key, epochs))  # 0 … epochs - 1: the epochs'
  fewer = jax.random.randint(number, (), 1, epochs + 1, jnp.int32)
  return jnp.where(jax.random.bernoulli(late, jnp.float32(share)), fewer, jnp.int32(epochs))
