"""Noise that remembers continues bit for bit; and every execution draws the same noise."""

import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import tree
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import min_separation

rng = np.random.default_rng(4)
UPDATES = {
  'a': rng.normal(size=(9, 4)).astype(np.float32),
  'b': rng.normal(size=(9, 2, 2)).astype(np.float32),
}
LAYERS = {
  'adaptive_clip': lambda: privacy.adaptive_clip(0.4, 6.0),
  'central': lambda: privacy.central(0.3, 1.0),
  'tree': lambda: privacy.tree(0.3, 1.0, 3),
  'matrix_factorization': lambda: privacy.matrix_factorization(0.3, 1.0, 9, separation=3),
}


def simulation(name, mode='vmap'):
  return given.build(UPDATES, LAYERS[name](), select=min_separation(9, 3, 3), execution=mode)


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYERS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name):
  sim = simulation(name)
  seed = tiny.rooted(3)
  start = lambda: sim._init(tree.zeros(sim.params), sim.population, *seed)
  whole, _, _ = sim.segment(start(), sim.population, *seed, np.int32(9))
  half, _, _ = sim.segment(start(), sim.population, *seed, np.int32(4))
  saved = tiny.host(half)  # arrays only: what a checkpoint holds
  other = simulation(name)  # a new process would build all of it anew
  rest, _, _ = other.segment(saved, other.population, *seed, np.int32(5))
  tiny.assert_same_bits(tiny.host(rest), tiny.host(whole))


@pytest.mark.devices(2)
@pytest.mark.slow
@pytest.mark.parametrize('name', LAYERS)
def test_every_execution_draws_the_same_noise(name):
  expected, got = (given.sums(simulation(name, mode), 4) for mode in ('loop', 'chunk on devices'))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
