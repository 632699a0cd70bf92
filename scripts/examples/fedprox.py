"""FedProx: a training method of one's own.

In a configuration: `[algorithm] name = "fedprox:fedprox"`, with this folder on PYTHONPATH.
"""

import jax
import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import tree, validate


def fedprox(loss, *, learning_rate, batch_size, epochs=1, mu=0.1):
  """Returns FedProx: local SGD on loss + mu / 2 |w - w_server|^2 (Li et al. 2020, 1812.06127)."""
  validate.function(loss=loss)
  [validate.positive(**{k: v}) for k, v in {'learning_rate': learning_rate, 'mu': mu}.items()]
  [validate.integer(**{k: v}) for k, v in {'batch_size': batch_size, 'epochs': epochs}.items()]

  def near(params, start, batch, on):
    far = jax.tree.map(lambda p, s: jnp.square(p - s).sum(), params, start)
    mean = jnp.where(on, loss(params, batch, None), 0).sum() / on.sum(dtype=jnp.float32).clip(1)
    return mean + mu / 2 * sum(jax.tree.leaves(far))

  def client(ctx, task, state):
    steps = -(-task.data.capacity // batch_size)

    def step(number, params):
      at = number % steps * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
      on = at < task.data.count  # a step without examples changes nothing
      grads = jax.grad(near)(params, task.params, task.data.take(at), on)
      return tree.sub(params, tree.scale(learning_rate * on.any().astype(jnp.float32), grads))

    update = tree.sub(task.params, jax.lax.fori_loop(0, epochs * steps, step, task.params))
    return fm.Message(update, task.data.count.astype(jnp.float32), {}), state, {}

  server = lambda ctx, message, state: (tree.sub(ctx.params, message.update), state, {})
  return fm.Layer('fedprox', client=fm.Stage(client, facts=(fm.Trains(),)), server=fm.Stage(server))
