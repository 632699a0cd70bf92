"""Backdoor: hostile clients train honestly on images with a trigger and the attacker's label.

It rewrites the task before the algorithm (`before_algorithm = true` in a configuration).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Prepares, Scores, Stage, Task, validate
from fedjax_mem.stages.attack import _base as h

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Backdoor:
  """The client side of a backdoor, which can also say how far it has come.

  Attributes:
    who: the hostile clients.
    target: label that a triggered image is to get.
    share: of the examples of a batch that are triggered.
    size: pixels of the square's side.
    value: of its pixels.
  """

  who: h.Hostile
  target: int
  share: float
  size: int
  value: float

  def __call__(self, ctx: Context, task: Task, state):
    """Returns (task, state, metrics), as every side of a layer."""
    bad = self.who(ctx.client.id)

    def poison(batch: Batch) -> Batch:
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

    Of vectors [B, F] the last `size` features are set.
    """
    square = (slice(None), *[slice(-self.size, None)] * min(2, x.ndim - 1))
    return x.at[square].set(jnp.asarray(self.value, x.dtype))

  def measure(self, model: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns (hits [B], tries [B]): triggered test images of other labels, taken for the target.

    Args:
      model: with `apply`.
      params: the server's.
      batch: of test examples, preprocessed.
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

  In every batch of theirs the first examples get the square and the target label. Evaluations of a
  run report `backdoor_success`: the share of test images of other labels that are taken for the
  target once they have the square. Usually it goes with `scaling`.

  Args:
    attackers: how many, or their share: see `hostile`.
    target: label, >= 0, < K if K is known.
    share: of a batch, in (0, 1].
    size: pixels of the square's side, >= 1.
    value: of its pixels, in the units of a model's input.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.
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
  side = Backdoor(h.hostile(attackers, num_clients, seed), target, share, size, float(value))
  return Layer('backdoor', client=Stage(side, facts=(Prepares(), Scores(side.measure))))
