"""FedSAM: a training method of one's own.

In a configuration: `[algorithm] name = "fedsam:fedsam"`, with this folder on PYTHONPATH.
"""

import jax
import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import tree, validate


def fedsam(loss, *, learning_rate, batch_size, epochs=1, rho=0.05):
  """Returns FedSAM: steps by the gradient at w + rho g / |g| (Qu et al. 2022, arXiv 2206.02618)."""
  validate.function(loss=loss)
  [validate.positive(**{k: v}) for k, v in {'learning_rate': learning_rate, 'rho': rho}.items()]
  [validate.integer(**{k: v}) for k, v in {'batch_size': batch_size, 'epochs': epochs}.items()]

  def mean(params, batch, on):
    return jnp.where(on, loss(params, batch, None), 0).sum() / on.sum(dtype=jnp.float32).clip(1)

  def client(ctx, task, state):
    steps = -(-task.data.capacity // batch_size)

    def step(number, params):
      at = number % steps * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
      batch, on = task.data.take(at), at < task.data.count  # without examples nothing changes
      up = jax.grad(mean)(params, batch, on)
      worst = tree.add(params, tree.scale(rho / tree.norm(up).clip(1e-12), up))
      return tree.sub(params, tree.scale(learning_rate, jax.grad(mean)(worst, batch, on)))

    update = tree.sub(task.params, jax.lax.fori_loop(0, epochs * steps, step, task.params))
    return fm.Message(update, task.data.count.astype(jnp.float32), {}), state, {}

  server = lambda ctx, message, state: (tree.sub(ctx.params, message.update), state, {})
  return fm.Layer('fedsam', client=fm.Stage(client, facts=(fm.Trains(),)), server=fm.Stage(server))
