"""Tree aggregation (DP-FTRL): noise of few tree nodes in every prefix sum, no sampling needed.

The rounds of a tree are its leaves, in binary. Each node has noise of its own, and what is released
are the noisy sums of nodes. The noise of the sum of the first t rounds comes from the nodes of t's
binary digits, so it grows with log t instead of t. Honaker's estimator then averages each node with
what its two children say of it, which lowers the variance of a node of height h from 1 to
1 / (2 (1 - 2^-(h + 1))).

What is drawn for a round is an increment: the noise of this prefix minus that of the one before.
Its noise at a node is drawn from the key of the round that completes it, and the estimates of the
open nodes are the state: O(log rounds) arrays, and no key.

A client that takes part once in a tree changes the sums of at most ceil(log2 restart) + 1 nodes, by
at most the bound each. The sampler must keep `restart` rounds between two participations.

References: Kairouz et al. (2021), arXiv 2103.00039, Algorithm 1 and appendix B; Honaker (2015),
Efficient use of differentially private binary trees.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import tree as trees
from fedjax_mem.core import validate
from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism


@dataclasses.dataclass(frozen=True)
class Tree(Mechanism):
  """Tree noise; `noise_multiplier` is the standard deviation of a node over the L2 bound.

  State: `done` (rounds of the present tree) and `open`, estimates of the noise of open nodes,
  [levels, ...] for each array.

  Attributes:
    restart: rounds between two fresh trees; None: one tree for the whole run, which is accounted
      and not drawn.
    honaker: use what the children of a node say of it; without it, the plain tree.
  """

  correlated = True
  restart: int | None = None
  honaker: bool = True

  def __post_init__(self) -> None:
    """Raises `ValueError` for numbers that are out of range."""
    super().__post_init__()
    if self.restart is not None:
      validate.integer(at_most=2**30, restart=self.restart)

  @property
  def min_sep(self) -> int:
    """Rounds between two participations of a client that it assumes."""
    return self.restart or 1

  def horizon(self, draws: Any) -> int | None:
    """Returns the most rounds that it covers: a client may take part once in a tree."""
    return draws.min_sep if self.restart is None and draws is not None else None

  def event(
    self,
    draws: Any,
    adjacency: str,
    accountant: str,
    rounds: int,
    bound: Bound | None = None,
    truncated: bool = False,
  ) -> Any:
    """Returns the event of `rounds` rounds: of as many trees as a client can be in.

    Raises:
      ValueError: a client may take part more than once in a tree.
    """
    import dp_accounting

    steps = min(self.restart or rounds, rounds)
    kept = 1 if draws is None else draws.min_sep
    if steps > kept:
      raise ValueError(
        f'a client may take part once in a tree, here of {steps} rounds, and the sampler keeps '
        f'{kept} between two participations; restart the tree every {kept} rounds'
      )
    moves = self.moves(adjacency, accountant)
    one = dp_accounting.SingleEpochTreeAggregationDpEvent(self.noise_multiplier / moves, steps)
    return dp_accounting.SelfComposedDpEvent(one, math.ceil(rounds / kept))

  def init(self, like: Any) -> Any:
    """Returns the state before the first round."""
    if self.restart is None:
      raise ValueError('restart must be given for noise that is drawn, got None.')
    levels = self.restart.bit_length()
    rows = lambda x: jnp.zeros((levels, *x.shape), jnp.float32)
    return {'done': jnp.int32(0), 'open': jax.tree.map(rows, like)}

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (noise of this prefix minus that of the one before, state)."""
    from fedjax_mem.kernels.random import noise

    stddev = self.noise_multiplier * bound.l2
    node = lambda height: noise.gaussian(jax.random.fold_in(key, height), like, stddev)
    change, opened = step(node, state['open'], state['done'], self.honaker)
    done = (state['done'] + 1) % (self.restart or 1)
    return change, {'done': done, 'open': opened}


def step(
  draw: Callable[[jax.Array], trees.Tree], opened: trees.Tree, done: jax.Array, honaker: bool
) -> tuple[trees.Tree, trees.Tree]:
  """Returns (noise of this prefix minus that of the last, estimates of the nodes now open).

  Args:
    draw: height -> noise of the node of that height which this round completes.
    opened: [levels, ...] for each array, estimates of the nodes open after `done` rounds: height h
      is open if bit h of `done` is set; the other rows are stale.
    done: int32, rounds of this tree so far.
    honaker: average a node with its children.
  """
  # Round done + 1 completes one node of each height 0 … closed; those below are merged into it.
  closed = jax.lax.population_count(done ^ (done + 1)) - 1

  def merge(
    height: jax.Array, carry: tuple[trees.Tree, trees.Tree]
  ) -> tuple[trees.Tree, trees.Tree]:
    estimate, gone = carry
    row = jax.tree.map(lambda x: x[height], opened)
    children = trees.add(estimate, row)
    # Variances over a node's own: 1 and twice a child's, 1 / (1 - 2^-(h + 1)).
    ratio = 1 / (1 - jnp.exp2(-(height + 1).astype(jnp.float32)))
    share = ratio / (1 + ratio) if honaker else jnp.float32(1)
    mix = lambda mine, theirs: share * mine + (1 - share) * theirs
    return jax.tree.map(mix, draw(height + 1), children), trees.add(gone, row)

  leaf = draw(jnp.int32(0))
  estimate, gone = jax.lax.fori_loop(0, closed, merge, (leaf, trees.zeros(leaf)))
  opened = jax.tree.map(lambda x, new: x.at[closed].set(new), opened, estimate)
  return trees.sub(estimate, gone), opened
