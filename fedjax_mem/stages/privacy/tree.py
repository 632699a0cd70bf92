"""Tree aggregation (DP-FTRL) as a layer: the sums over rounds get the noise of few tree nodes.

The server optimizer gets increments: this round's sum, plus the noise of this prefix minus that of
the one before. The noise and its guarantee are those of `mechanisms/tree.py`.

Reference: Kairouz et al. (2021), arXiv 2103.00039, Algorithm 1.
"""

from fedjax_mem import mechanisms
from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.privacy import _noising as noising


def tree(
  l2_clip_norm: float,
  noise_multiplier: float,
  restart: int,
  *,
  honaker: bool = True,
) -> Layer:
  """Returns the layer that clips each update and adds tree noise to the sums over rounds.

  Server state: that of `mechanisms.Tree`, O(log restart) arrays.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of a node's noise over the bound, > 0.
    restart: rounds of a tree, after which a fresh one begins, >= 1; at most the sampler's
      separation.
    honaker: use what the children of a node say of it; without it, the plain tree.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.integer(at_most=2**30, restart=restart)
  validate.boolean(honaker=honaker)
  made = mechanisms.Tree(noise_multiplier, restart=restart, honaker=honaker)
  return noising.clip_and_release('tree', l2_clip_norm, made)
