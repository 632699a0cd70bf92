"""K-norm noise: a mechanism of one's own, with pure epsilon under an L2 clip.

In a configuration: `stages = [{use = "central", options = {mechanism = "knorm:KNorm", …}}]`, with
this folder on PYTHONPATH.
"""

import dataclasses
import math

import dp_accounting
import jax
import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import tree


@dataclasses.dataclass(frozen=True)
class KNorm(fm.Mechanism):
  """Noise of density proportional to exp(-|x| / (noise_multiplier x the L2 bound)).

  A neighbour at the bound changes the density by a factor of exp(1 / noise_multiplier) at the most:
  pure epsilon. Of all that is as private, randomised response is the worst under composition, so it
  is accounted as that.

  References: Hardt and Talwar (2010), arXiv 0907.3754, section 4 (the K-norm mechanism); Kairouz,
  Oh, Viswanath (2015), arXiv 1311.0776 (randomised response dominates).
  """

  def adjacencies(self, draws):
    """Returns the neighbours: the library has that event for one client replaced alone."""
    return ('replace_one',)

  def once(self, moves, bound):
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    spread = 2 / (1 + math.exp(moves / self.noise_multiplier))
    return dp_accounting.RandomizedResponseDpEvent(spread, 2)

  def draw(self, key, like, bound, state):
    """Returns (noise, state): a direction at random, and a length by the gamma law."""
    direction, length = jax.random.split(key)
    size = tree.size(like)
    x = jax.random.normal(direction, (size,), jnp.float32)
    radius = jax.random.gamma(length, float(size), dtype=jnp.float32)
    x *= self.noise_multiplier * bound.l2 * radius / jnp.linalg.norm(x)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), like)
    return tree.unravel(x, shapes), state
