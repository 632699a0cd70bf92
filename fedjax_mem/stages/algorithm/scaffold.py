"""SCAFFOLD: control variates of the clients correct the drift of their local steps."""

import jax.numpy as jnp
import optax

from fedjax_mem.core import (
  Broadcasts,
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
from fedjax_mem.stages.algorithm._accumulates import Accumulates


def scaffold(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  total_weight: float,
  epochs: int = 1,
  option: int = 2,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the SCAFFOLD layer: local steps y <- y - eta (g(y) - c_i + c).

  Each client keeps its control c_i, and the server c, their mean over all clients; all start at
  zero. A client sends the change of its c_i beside its update, as `aux['control']`. The optimizer
  gets g alone and -eta (c - c_i) is added to its step, so momentum does not hold the correction;
  without momentum both are the same.

  Reference: Karimireddy et al. (2020), arXiv 1910.06378, Algorithm 1 and equations 3 to 5.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = scaffold(loss, learning_rate=0.5, batch_size=1, total_weight=2)
  >>> layers = train, fm.stages.select.uniform(2, 2), fm.stages.weigh.equal()
  >>> clients = fm.core.stack_clients([{'x': np.ones(1)}, {'x': np.full(1, 5.0)}])
  >>> sim = fm.simulate(layers, jnp.zeros(()), clients)
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].clients['algorithm'].tolist()  # gradients at 0
  [-1.0, -5.0]

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: eta, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    total_weight: the weights of all clients together, > 0: their number under `weigh.equal`, all
      examples under `weigh.by_examples`, by which c is then weighted, too. A configuration sets it.
    epochs: passes of a client over its examples in a round, >= 1.
    option: the new c_i: 1, the gradient over all its examples at the server's parameters; or 2,
      c_i - c + (x - y) / (K eta) of its K local steps.
    optimizer: learning rate -> the clients' optax optimizer.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer)
  validate.positive(total_weight=total_weight)
  validate.integer(at_most=2, option=option)
  server_step = training.server_optimizer_of(server_optimizer)

  def client(ctx: Context, task: Task, own: Tree) -> tuple[Message, Tree, Metrics]:
    more = tree.sub(ctx.server_state['control'], own)
    rate = train.rate(ctx.round)
    done = train(ctx, task, drift=tree.scale(-rate, more))
    message = training.sent(task, done)
    if option == 1:
      new = train.gradient(ctx, task)
    else:
      by = rate * jnp.maximum(done.steps, 1).astype(jnp.float32)
      new = tree.sub(tree.scale(1 / by, message.update), more)
    new = tree.select(message.weight > 0, new, own)
    return message._replace(aux={'control': tree.sub(new, own)}), new, done.metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    params, step = training.descend(server_step, ctx.params, message, state['step'])
    change = tree.scale(message.weight / total_weight, message.aux['control'])
    return params, {'control': tree.add(state['control'], change), 'step': step}, {}

  start = training.beginning(server_step, 'control')
  keeps = Stage(server, start, (Accumulates(float(total_weight)),))
  zeros = lambda ctx: tree.zeros(ctx.params)
  return Layer('algorithm', client=Stage(client, zeros, (Trains(), Broadcasts(1))), server=keeps)
