"""Tree aggregation (DP-FTRL) as a layer: prefix sums over rounds get the noise of few tree nodes.

The server optimizer gets increments: the sum of this round, plus the noise of this prefix sum minus
the noise of the previous one. `mechanisms/tree.py` describes the noise and its guarantee.

Reference: Kairouz et al. (2021), arXiv 2103.00039, Algorithm 1.
"""

from fedjax_mem import mechanisms
from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.privacy import _base as kit


def tree(
  l2_clip_norm: float,
  noise_multiplier: float,
  restart: int,
  *,
  honaker: bool = True,
) -> Layer:
  """Returns the layer that clips each update and adds tree noise to the prefix sums over rounds.

  Server state: that of `mechanisms.Tree`, O(log restart) arrays.

  >>> noise = tree(1.0, 0.5, restart=16).fact(fm.Noises).mechanism
  >>> noise.noise_multiplier, noise.min_sep
  (0.5, 16)

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of a node's noise over the bound, > 0.
    restart: rounds of a tree, after which a new tree begins, >= 1; at most the sampler's min_sep.
    honaker: use Honaker's estimator, which averages each node with the sum of its children and so
      lowers its variance; False: the plain tree.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.integer(at_most=2**30, restart=restart)
  validate.boolean(honaker=honaker)
  made = mechanisms.Tree(noise_multiplier, restart=restart, honaker=honaker)
  return kit.clip_and_release('tree', l2_clip_norm, made)
