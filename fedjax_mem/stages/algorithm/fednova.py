"""FedNova: updates are divided by how far their clients' steps reach, before they are averaged.

a_i holds how often each gradient of a client's tau steps counts in x - y_i, over the learning rate:
|a_i|_1 is tau for plain steps, (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho) with momentum rho,
and (1 - (1 - eta mu)^tau) / (eta mu) with a proximal term, eta mu <= 1. Where the pull is strong,
gradients may count negatively: |a_i|_1 sums their absolute values, which is ours, as the paper's
a_i are not negative. Weight decay belongs to the loss and does not count. A client sends |a_i|_1
beside its divided update, as `aux['length']`.
"""

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
  tree,
  validate,
)
from fedjax_mem.stages.algorithm import _base as training


def fednova(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  epochs: int = 1,
  mu: float = 0.0,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the FedNova layer: x <- x - (sum p_i |a_i|_1) sum p_i (x - y_i) / |a_i|_1.

  Where all clients make as many steps, it is FedAvg (or FedProx).

  Reference: Wang et al. (2020), arXiv 2007.07481, Algorithm 1; a_i as in section 4.1. The paper
  leaves the effective number of steps free: here it is sum p_i |a_i|_1.

  >>> loss = lambda params, batch, key: params * batch['x']
  >>> train = fednova(loss, learning_rate=1.0, batch_size=1)
  >>> layers = train, fm.stages.select.uniform(2, 2), fm.stages.weigh.equal()
  >>> clients = fm.core.stack_clients([{'x': np.ones(1)}, {'x': np.full(3, 5.0)}])
  >>> sim = fm.simulate(layers, jnp.zeros(()), clients)
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # -(1 + 3) / 2 * (1 / 1 + 15 / 3) / 2
  -6.0

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    epochs: passes of a client over its examples in a round, >= 1.
    mu: weight of a proximal term mu / 2 |w - w_server|^2, >= 0.
    optimizer: the clients' SGD, `Sgd(momentum, weight_decay)` or `optax.sgd`: a_i is known of SGD.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range, or the optimizer is not SGD.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer)
  momentum = training.sgd_of(optimizer).momentum
  validate.non_negative(mu=mu)
  server_step = training.server_optimizer_of(server_optimizer)

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    done = train(ctx, task, correct=training.near(mu, task.params) if mu else None)
    length = _length(done.steps, momentum, mu * jnp.float32(train.rate(ctx.round)))
    message = training.sent(task, done, {'length': length, 'took': jnp.float32(1)})
    by = jnp.where(done.steps > 0, length, 1.0)
    return message._replace(update=tree.scale(1 / by, message.update)), state, done.metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    # Over the sum of the weights, which a fixed divisor is not.
    effective = message.aux['length'] / jnp.maximum(message.aux['took'], 1e-30)
    message = message._replace(update=tree.scale(effective, message.update))
    params, state = training.descend(server_step, ctx.params, message, state)
    return params, state, {'effective_steps': effective}

  steps = Stage(server, lambda ctx: server_step.init(ctx.params))
  return Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=steps)


def _length(steps: jax.Array, momentum: float, pull: jax.Array) -> jax.Array:
  """Returns |a_i|_1 of `steps` steps, float32: the sum over gradients of how much each counts.

  The gradient of the m-th step from the end has moved the client by h_m of it: h_1 = 1, momentum
  goes on with it and the pull goes back, maybe beyond 0. From eta mu = 2 (1 + rho) on, where steps
  diverge, so does h_m.

  Args:
    steps: int32.
    momentum: rho.
    pull: eta mu, by which each step goes back of the way so far.
  """

  def step(_: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    way, speed, length = carry
    speed = momentum * speed - pull * way
    return way + speed, speed, length + jnp.abs(way)

  start = jnp.float32(1), jnp.float32(1), jnp.float32(0)
  length: jax.Array = jax.lax.fori_loop(0, steps, step, start)[2]
  return length
