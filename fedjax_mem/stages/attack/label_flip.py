"""Label flipping: hostile clients train honestly on wrong labels.

It rewrites the task before the algorithm (`before_algorithm = true` in a configuration).
"""

import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Prepares, Stage, Task, validate
from fedjax_mem.stages.attack import _base as h


def label_flip(
  attackers: float, num_classes: int, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients train on the labels num_classes - 1 - y.

  Args:
    attackers: how many, or their share: see `hostile`.
    num_classes: K, >= 2.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Fang et al. (2020), arXiv 1911.11815, section 5.1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(at_least=2, num_classes=num_classes)
  who = h.hostile(attackers, num_clients, seed)

  def client(ctx: Context, task: Task, state):
    bad = who(ctx.client.id)
    flip = lambda batch: {**batch, 'y': jnp.where(bad, num_classes - 1 - batch['y'], batch['y'])}
    return task._replace(data=task.data.map(flip)), state, {}

  return Layer('label_flip', client=Stage(client, facts=(Prepares(by_example=True),)))
