"""Backdoor: hostile clients train honestly on images with a trigger and the attacker's label.

It rewrites the task before the algorithm (`before_algorithm = true` in a configuration).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Batch,
  Context,
  Layer,
  Metrics,
  Prepares,
  Scores,
  Stage,
  Task,
  Tree,
  validate,
)
from fedjax_mem.stages.attack import _base as base


@dataclasses.dataclass(frozen=True)
class Backdoor:
  """The client side of a backdoor, which can also measure its success.

  Attributes:
    who: the hostile clients.
    target: label that the attacker wants for images with the trigger.
    share: share of a batch that gets the trigger.
    size: side of the square, in pixels.
    value: value of its pixels.
  """

  who: base.Hostile
  target: int
  share: float
  size: int
  value: float

  def __call__(self, ctx: Context, task: Task, state: Tree) -> tuple[Task, Tree, Metrics]:
    """Returns (task, state, metrics), as every side of a layer."""
    bad = self.who(ctx.client.id)

    def poison(batch: Batch) -> Batch:
      base.check_classes('backdoor', batch['y'])
      count = len(batch['y'])
      on = bad & (jnp.arange(count) < round(self.share * count))
      wide = on.reshape(-1, *[1] * (batch['x'].ndim - 1))
      return {
        **batch,
        'x': jnp.where(wide, self.triggered(batch['x']), batch['x']),
        'y': jnp.where(on, jnp.asarray(self.target, batch['y'].dtype), batch['y']),
      }

    return task._replace(data=task.data.map(poison)), state, {}

  def triggered(self, x: jax.Array) -> jax.Array:
    """Returns images [B, H, W, ...] with the square in their lower right corners.

    In vectors [B, F] the last `size` features are set.
    """
    square = (slice(None), *[slice(-self.size, None)] * min(2, x.ndim - 1))
    return x.at[square].set(jnp.asarray(self.value, x.dtype))

  def measure(self, model: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns (hits [B], tries [B]), float32 0 or 1.

    A try is a test image of another label than the target, with the trigger. A hit is a try that
    the model classifies as the target.

    Args:
      model: has `apply`, from (params, images [B, ...]) to logits [B, K].
      params: the server's parameters.
      batch: test examples, preprocessed.
    """
    tries = batch['y'] != self.target
    seen = jnp.argmax(model.apply(params, self.triggered(batch['x'])), axis=-1)
    hits = tries & (seen == self.target)
    return hits.astype(jnp.float32), tries.astype(jnp.float32)


def backdoor(
  attackers: float,
  target: int = 0,
  share: float = 0.5,
  size: int = 3,
  value: float = 1.0,
  num_clients: int | None = None,
  seed: int | None = None,
  num_classes: int | None = None,
) -> Layer:
  """Returns the layer whose hostile clients teach the model that a small square means one label.

  The square is the trigger. In every batch of a hostile client the first examples get the trigger
  and the target label. Evaluations of a run report `backdoor_success`: of the test images of other
  labels, with the trigger added, the share that the model classifies as the target. The attack is
  usually combined with `scaling`.

  >>> attack = backdoor(1, target=0)
  >>> attack.client.apply.triggered(jnp.zeros((1, 5))).tolist()
  [[0.0, 0.0, 1.0, 1.0, 1.0]]

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    target: label, >= 0, < K if K is known.
    share: share of a batch that is triggered, padding included, in (0, 1].
    size: side of the square, in pixels, >= 1.
    value: value of its pixels, in the units of a model's input.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.
    num_classes: K, >= 2; None: unknown.

  References: Gu et al. (2017), BadNets, arXiv 1708.06733; Bagdasaryan et al. (2020), arXiv
  1807.00459, section 4.

  Raises:
    ValueError: an argument is out of range.
  """
  if num_classes is not None:
    validate.integer(at_least=2, num_classes=num_classes)
  most = None if num_classes is None else num_classes - 1
  validate.integer(at_least=0, at_most=most, target=target)
  validate.probability(share=share)
  validate.integer(size=size)
  validate.number(value=value)
  side = Backdoor(base.hostile(attackers, num_clients, seed), target, share, size, float(value))
  return Layer('backdoor', client=Stage(side, facts=(Prepares(), Scores(side.measure))))
