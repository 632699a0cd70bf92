"""FedDyn: each client's loss is corrected so that all agree where the mean loss is least.

Each client keeps l_k, its gradient where it ended last, and the server h; all start at zero. Only
updates are sent. The server's step is their average plus h / alpha, its state `drift`.
"""

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
from fedjax_mem.stages.algorithm._accumulates import Accumulates


def feddyn(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  total_weight: float,
  epochs: int = 1,
  alpha: float = 0.01,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the FedDyn layer: clients minimize L_k(w) - <l_k, w> + alpha / 2 |w - w_server|^2.

  Reference: Acar et al. (2021), arXiv 2111.04263, Algorithm 1 and equation 1; the minimum over w is
  taken by local steps.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = feddyn(loss, learning_rate=0.5, batch_size=1, total_weight=1, alpha=1.0)
  >>> layers = train, fm.stages.select.uniform(1, 1), fm.stages.weigh.equal()
  >>> sim = fm.simulate(layers, jnp.zeros(()), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # 0.5 of the client and 0.5 of h
  1.0

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    total_weight: the weights of all clients together, > 0: their number under `weigh.equal`, all
      examples under `weigh.by_examples`. A configuration sets it.
    epochs: passes of a client over its examples in a round, >= 1.
    alpha: > 0.
    optimizer: learning rate -> the clients' optax optimizer.
    server_optimizer: optax optimizer of the server's step; by default x <- x - step.

  Raises:
    ValueError: an argument is out of range.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer)
  validate.positive(total_weight=total_weight)
  validate.positive(alpha=alpha)
  server_step = training.server_optimizer_of(server_optimizer)

  def client(ctx: Context, task: Task, own: Tree) -> tuple[Message, Tree, Metrics]:
    near = training.near(alpha, task.params)
    done = train(ctx, task, correct=lambda p, grads, of: tree.sub(near(p, grads, of), own))
    message = training.sent(task, done)  # zeros of a client without examples, which takes no step
    return message, tree.add(own, tree.scale(alpha, message.update)), done.metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    change = tree.scale(message.weight / total_weight, message.update)
    drift = tree.add(state['drift'], change)
    message = message._replace(update=tree.add(message.update, drift))
    params, step = training.descend(server_step, ctx.params, message, state['step'])
    return params, {'drift': drift, 'step': step}, {}

  keeps = Stage(server, training.beginning(server_step, 'drift'), (Accumulates(total_weight),))
  return Layer('algorithm', client=Stage(client, training.zeros, (Trains(),)), server=keeps)
