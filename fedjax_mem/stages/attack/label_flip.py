"""Label flipping: hostile clients train honestly on wrong labels.

It rewrites the task before the algorithm (`before_algorithm = true` in a configuration).
"""

import jax.numpy as jnp

from fedjax_mem.core import Batch, Context, Layer, Metrics, Prepares, Stage, Task, Tree, validate
from fedjax_mem.stages.attack import _base as base


def label_flip(
  attackers: float, num_classes: int, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients train on the labels num_classes - 1 - y.

  >>> model = fm.models.build('logistic', (4,), num_classes=3)
  >>> train = fm.stages.algorithm.fedavg(model.loss, learning_rate=0.1, batch_size=20)
  >>> attack = label_flip(0.2, num_classes=3, num_clients=50)  # clients 0 … 9
  >>> others = fm.stages.select.uniform(50, 10), fm.stages.weigh.by_examples()
  >>> [layer.name for layer in fm.compose(attack, train, *others)]
  ['label_flip', 'algorithm', 'select', 'weigh']

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    num_classes: K, >= 2.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Fang et al. (2020), arXiv 1911.11815, section 5.1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(at_least=2, num_classes=num_classes)
  who = base.hostile(attackers, num_clients, seed)

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Task, Tree, Metrics]:
    bad = who(ctx.client.id)

    def flip(batch: Batch) -> Batch:
      base.check_classes('label_flip', batch['y'])
      return {**batch, 'y': jnp.where(bad, num_classes - 1 - batch['y'], batch['y'])}

    return task._replace(data=task.data.map(flip)), state, {}

  return Layer('label_flip', client=Stage(client, facts=(Prepares(by_example=True),)))
