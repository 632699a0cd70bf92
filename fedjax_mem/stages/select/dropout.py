"""Drop-out: clients that are lost after their work, before their message arrives."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Member, Metrics, Tree, validate
from fedjax_mem.stages.select import _base as draws


def dropout(rate: float) -> Layer:
  """Returns the layer with which every client of a cohort is lost with probability `rate`.

  A lost client has done its work, masks included, but its message does not arrive and its state is
  not committed. Whether a client is lost depends only on (seed, round, client). The layer comes
  after the layer that draws. Metric: `dropped_out`, clients that were selected but do not arrive.

  >>> applied = fm.apply(np.ones((1000, 1)), dropout(0.2))
  >>> 150 < int(applied.metrics['select/dropped_out']) < 250
  True

  Args:
    rate: probability that a client drops out, in [0, 1].

  Raises:
    ValueError: the rate is not in [0, 1].
  """
  validate.fraction(rate=rate)

  def stays(ctx: Context, cohort: Member, state: Tree) -> tuple[jax.Array, Tree, Metrics]:
    here = draws.each(ctx.key, jax.random.uniform, cohort.id) >= rate
    lost = (cohort.real & ~(cohort.arrived & here)).sum(dtype=jnp.int32)
    return here, state, {'dropped_out': lost}

  return draws.filtering('dropout', stays, before_work=False)
