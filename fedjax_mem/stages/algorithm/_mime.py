"""What Mime and MimeLite share: the server's momentum, which clients use and do not change."""

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


def layer(
  train: training.Local,
  beta: float,
  server_optimizer: optax.GradientTransformation | None,
  reduced: bool,
) -> Layer:
  """Returns the layer; its server state is the momentum m, the gradient c and the server's step.

  Args:
    train: the local training.
    beta: momentum, in [0, 1).
    server_optimizer: of the average update, or None.
    reduced: whether local gradients are corrected by c (Mime), or not (MimeLite).
  """
  validate.below_one(beta=beta)
  server_step = training.server_optimizer_of(server_optimizer)

  def mixed(grads: Tree, m: Tree) -> Tree:
    return tree.add(tree.scale(1 - beta, grads), tree.scale(beta, m))

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    known = ctx.server_state

    def correct(params: Tree, grads: Tree, of: training.GradientFn) -> Tree:
      del params
      if reduced:
        grads = tree.add(tree.sub(grads, of(task.params)), known['gradient'])
      return mixed(grads, known['momentum'])

    done = train(ctx, task, correct=correct)
    whole = train.gradient(ctx, task)
    beside = {'gradient': whole, 'took': jnp.float32(1)}
    return training.sent(task, done, beside), state, done.metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    params, step = training.descend(server_step, ctx.params, message, state['step'])
    # Over the sum of the weights, which a fixed divisor is not.
    took = message.aux['took']
    seen = tree.scale(1 / jnp.maximum(took, 1e-30), message.aux['gradient'])
    new = {'momentum': mixed(seen, state['momentum'])} | ({'gradient': seen} if reduced else {})
    old = {name: state[name] for name in new}
    return params, tree.select(took > 0, new, old) | {'step': step}, {}

  names = ('momentum', 'gradient') if reduced else ('momentum',)
  return Layer(
    'algorithm',
    client=Stage(client, facts=(Trains(), Broadcasts(len(names)))),
    server=Stage(server, training.beginning(server_step, *names)),
  )
