"""Tree aggregation (DP-FTRL): noise of few tree nodes in every prefix sum, no sampling needed.

The rounds of a tree are its leaves, in binary. Each node has noise of its own, and what is released
are the noisy sums of nodes. The noise of the sum of the first t rounds comes from the nodes of t's
binary digits, so it grows with log t instead of t. Honaker's estimator then averages each node with
what its two children say of it, which lowers the variance of a node of height h from 1 to
1 / (2 (1 - 2^-(h + 1))).

The server optimizer gets increments: this round's sum, plus the noise of this prefix minus that of
the one before. Its noise at a node is drawn from the key of the round that completes it, and the
estimates of the open nodes are the state: O(log rounds) arrays, and no key.

Formal guarantee: a client that takes part once in a tree changes the sums of at most
ceil(log2 restart) + 1 nodes, by at most the clip norm each, and each has noise of
`noise_multiplier` times that. The sampler must keep `restart` rounds between two participations.

References: Kairouz et al. (2021), arXiv 2103.00039, Algorithm 1 and appendix B; Honaker (2015),
Efficient use of differentially private binary trees.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Message, Noises, Stage, validate
from fedjax_mem.core import tree as trees
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.kernels import noise
from fedjax_mem.stages.privacy import clipping, noising


def tree(
  l2_clip_norm: float,
  noise_multiplier: float,
  restart: int,
  *,
  honaker: bool = True,
) -> Layer:
  """Returns the layer that clips each update and adds tree noise to the sums over rounds.

  Server state: `done` (rounds of the present tree) and `open`, estimates of the noise of open
  nodes, [levels, ...] for each array.

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
  validate.positive(noise_multiplier=noise_multiplier)
  validate.integer(at_most=2**30, restart=restart)
  clipping.check_flag(honaker=honaker)
  levels = restart.bit_length()

  def client(ctx: Context, message: Message, state):
    message, _, metrics = clipping.clipped(clipping.l2, message, l2_clip_norm)
    return message, state, metrics

  def init(ctx: Context):
    rows = lambda x: jnp.zeros((levels, *x.shape), jnp.float32)
    return {'done': jnp.int32(0), 'open': jax.tree.map(rows, ctx.spec.update)}

  def release(ctx: Context, message: Message, state):
    stddev = noise_multiplier * ctx.bound.l2
    draw = lambda height: noise.gaussian(
      jax.random.fold_in(ctx.key, height), message.update, stddev
    )
    change, opened = step(draw, state['open'], state['done'], honaker)
    done = (state['done'] + 1) % restart
    return noising.added(ctx, message, change), {'done': done, 'open': opened}, {}

  mechanism = Mechanism('tree', noise_multiplier, restart=restart)
  return Layer(
    'tree',
    client=Stage(client, facts=(noising.within(float(l2_clip_norm)),)),
    server=Stage(release, init, (Noises(mechanism),)),
  )


def step(draw, opened, done: jax.Array, honaker: bool):
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

  def merge(height: jax.Array, carry: tuple):
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
