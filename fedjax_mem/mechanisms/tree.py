"""Tree aggregation (DP-FTRL): each prefix sum has the noise of few tree nodes; no sampling needed.

The rounds are the leaves of a binary tree. Each node has independent noise, and the noisy sums of
the nodes are released. The sum of the first t rounds is made of one node for each binary digit 1 of
t, so the variance of its noise grows with log t and not with t. Honaker's estimator also averages
each node with the sum of its two children, which lowers the variance of a node of height h from 1
to 1 / (2 (1 - 2^-(h + 1))).

The noise that is added in a round is an increment: the noise of this prefix minus that of the one
before. The noise of a node is drawn from the key of the round that completes it. The state is the
estimates of the nodes not yet merged into a higher one: O(log rounds) arrays, and no key.

A client that takes part once in a tree changes the sums of at most ceil(log2 restart) + 1 nodes, by
at most the bound each. The sampler must keep `restart` rounds between two participations (min_sep).

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

  With 8 rounds between two participations of a client, and a new tree every 8 rounds:

  >>> apart = fm.Draws('cyclic', population=80, expected=10, capacity=10, min_sep=8)
  >>> str(fm.account.epsilon(apart, Tree(2.0, restart=8), rounds=8, delta=1e-5))[:9]
  'ε = 4.729'

  State: `done` (rounds of the present tree) and `open`, estimates of the noise of open nodes,
  [levels, ...] for each array.

  Attributes:
    restart: rounds of a tree, after which a new one begins; None: one tree for the whole run, which
      can be accounted for but not drawn.
    honaker: whether to average a node with its children (Honaker's estimator).
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
    """The least number of rounds between two participations of a client that it assumes."""
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
    """Returns the event of `rounds` rounds: one tree, composed for each that a client can be in.

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
    draw: height -> noise of the node of that height that this round completes.
    opened: [levels, ...] for each array, estimates of the nodes that are open after `done` rounds:
      that of height h is open if bit h of `done` is set; the other rows are stale.
    done: int32, rounds of this tree so far.
    honaker: average a node with its children.
  """
  # Round done + 1 completes one node of each height 0 … closed. The highest of them becomes open;
  # the open nodes below it are merged into it.
  closed = jax.lax.population_count(done ^ (done + 1)) - 1

  def merge(
    height: jax.Array, carry: tuple[trees.Tree, trees.Tree]
  ) -> tuple[trees.Tree, trees.Tree]:
    estimate, gone = carry
    row = jax.tree.map(lambda x: x[height], opened)
    children = trees.add(estimate, row)
    # Weights by inverse variance. In units of the node's own noise: 1, and twice that of a child's
    # estimate, 1 / (1 - 2^-(height + 1)).
    ratio = 1 / (1 - jnp.exp2(-(height + 1).astype(jnp.float32)))
    share = ratio / (1 + ratio) if honaker else jnp.float32(1)
    mix = lambda mine, theirs: share * mine + (1 - share) * theirs
    return jax.tree.map(mix, draw(height + 1), children), trees.add(gone, row)

  leaf = draw(jnp.int32(0))
  estimate, gone = jax.lax.fori_loop(0, closed, merge, (leaf, trees.zeros(leaf)))
  opened = jax.tree.map(lambda x, new: x.at[closed].set(new), opened, estimate)
  return trees.sub(estimate, gone), opened
