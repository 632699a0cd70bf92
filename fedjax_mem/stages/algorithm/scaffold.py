"""SCAFFOLD: control variates of the clients correct the drift of their local steps.

Each client keeps its control c_i, and the server c, their mean over all clients; all start at zero.
A client sends the change of its c_i beside its update, as `aux['control']`. The optimizer gets g
alone and -eta (c - c_i) is added to its step, so momentum does not hold the correction; without
momentum both are the same. Option 1 takes the gradient over all examples of the client, option 2
all K local steps.

Under weights w_k, c is the mean by them, sum w_k c_k / sum w_k: `total_weight` is the sum over all
clients, N under `weigh.equal` and all examples under `weigh.by_examples`. A configuration sets it.
"""

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

  Reference: Karimireddy et al. (2020), arXiv 1910.06378, Algorithm 1 and equations 3 to 5.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = scaffold(loss, learning_rate=0.5, batch_size=1, total_weight=1)
  >>> layers = train, fm.stages.select.uniform(1, 1), fm.stages.weigh.equal()
  >>> sim = fm.simulate(layers, jnp.zeros(()), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].clients['algorithm'].tolist()  # gradient at 0
  [-1.0]

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: eta, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    total_weight: of all clients together, > 0, such as their number; c is weighted, too.
    epochs: passes of a client over its examples in a round, >= 1.
    option: the new c_i is 1, its gradient at x, or 2, c_i - c + (x - y) / (K eta) of its K steps.
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
    by = rate * jnp.maximum(done.steps, 1).astype(jnp.float32)
    of_steps = tree.sub(tree.scale(1 / by, message.update), more)
    new = train.gradient(ctx, task) if option == 1 else of_steps
    new = tree.select(message.weight > 0, new, own)
    return message._replace(aux={'control': tree.sub(new, own)}), new, done.metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    params, step = training.descend(server_step, ctx.params, message, state['step'])
    change = tree.scale(message.weight / total_weight, message.aux['control'])
    return params, {'control': tree.add(state['control'], change), 'step': step}, {}

  keeps = Stage(server, training.beginning(server_step, 'control'), (Accumulates(total_weight),))
  trains = Stage(client, training.zeros, (Trains(), Broadcasts(1)))
  return Layer('algorithm', client=trains, server=keeps)
