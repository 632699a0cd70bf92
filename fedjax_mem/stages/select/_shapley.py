"""Values of a cohort's clients: exact Shapley, by guided permutation sampling, and leave-one-out.

All of them evaluate many subsets at once: a `Value` takes masks [S, C] and returns [S].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Carry = tuple[jax.Array, jax.Array, jax.Array]
# masks [S, C] bool -> values [S] float32
Value = Callable[[jax.Array], jax.Array]
EXACT_AT_MOST = 8  # clients: 2^8 subsets


def exact(value: Value, number: int) -> jax.Array:
  """Returns the Shapley values [C] by their definition, from all 2^C subsets.

  phi_i = sum over S without i of |S|! (C - |S| - 1)! / C! (v(S + i) - v(S)). A client that changes
  no value gets 0, and the others get the values of the game without it.

  Reference: Shapley (1953), A value for n-person games.

  Args:
    value: of subsets, v.
    number: C.
  """
  masks = (np.arange(2**number)[:, None] >> np.arange(number)[None]) & 1 > 0
  size = masks.sum(1)
  share = np.array(
    [math.factorial(s) * math.factorial(number - s - 1) for s in range(number)] + [0]
  ) / math.factorial(number)
  # v(S) occurs in phi_i with a plus for members i of S, with a minus for the others.
  factor = np.where(masks, share[size - 1][:, None], -share[size][:, None]).astype(np.float32)
  values = value(jnp.asarray(masks))
  return jnp.sum((values - values[0])[:, None] * factor, 0)


def leave_one_out(value: Value, number: int) -> jax.Array:
  """Returns v(all) - v(all without i), [C], for the values v of subsets of C = `number` clients."""
  masks = jnp.concatenate([jnp.ones((1, number), bool), ~jnp.eye(number, dtype=bool)])
  values = value(masks)
  return values[0] - values[1:]


def gtg(
  value: Value, number: int, key: jax.Array, sweeps: int, truncation: float
) -> tuple[jax.Array, jax.Array]:
  """Returns (estimates of the Shapley values [C], evaluations of subsets, int32).

  Guided sampling: every client leads `sweeps` permutations, and the others follow in random order,
  so every client comes first equally often. All permutations advance together, place by place.
  Truncation within a round: once the value of a permutation is within `truncation` of v(all), its
  further clients gain nothing, and the loop ends when all permutations are there. Truncation
  between rounds: if v(all) is within `truncation` of v(none), all values are 0. Without truncation
  the estimates are unbiased and add up to v(all) - v(none).

  Reference: Liu et al. (2022), arXiv 2109.02053, Algorithm 1, with a fixed number of permutations
  in place of its test of convergence.

  Args:
    value: of subsets, v.
    number: C.
    key: of the permutations.
    sweeps: permutations led by each client, >= 1.
    truncation: >= 0, in units of the value.
  """
  lines = sweeps * number
  leads = jnp.arange(lines, dtype=jnp.int32) % number
  ids = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32)[None], (lines, number))
  behind = (ids != leads[:, None]).astype(jnp.int32)
  bits = jax.random.bits(key, (lines, number), jnp.uint32)
  order = jax.lax.sort((behind, bits, ids), num_keys=2)[2]
  place = jnp.argsort(order, 1)
  none, whole = value(jnp.stack([jnp.zeros(number, bool), jnp.ones(number, bool)]))

  def waiting(before: jax.Array) -> jax.Array:
    far = jnp.abs(whole - before) > truncation
    # Without truncation a permutation must not end because its value equals v(all) by chance.
    return far | (truncation == 0)

  def go_on(carry: Carry) -> jax.Array:
    at, before, _ = carry
    return (at < number) & waiting(before).any()

  def step(carry: Carry) -> Carry:
    at, before, total = carry
    # At the last place the subset is the whole cohort, whose value is known.
    found = jax.lax.cond(
      at == number - 1, lambda: jnp.full(lines, whole), lambda: value(place <= at)
    )
    now = jnp.where(waiting(before), found, before)
    return at + 1, now, total.at[order[:, at]].add(now - before)

  start = (jnp.int32(0), jnp.full(lines, none), jnp.zeros(number))
  at, _, total = jax.lax.while_loop(go_on, step, start)
  return total / lines, 2 + lines * jnp.minimum(at, number - 1)
