"""Lanes of methods of every room: side by side, each is the simulation alone."""

from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_mem.config.load import load_config
from fedjax_mem.engine import lanes
from fedjax_mem.studies.sweeps import grid, planning

STACKS = Path(__file__).parent / 'stacks'
NAMES = ('private_central_discrete', 'private_matrix_blt', 'robust_krum_gaussian')

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', NAMES)
def test_lanes_of_a_stack_are_its_simulations_alone(name):
  fixed = ('rounds=3', 'data.partition_seed=0', 'evaluation.every=3', 'noise_seed=0')
  config = load_config(STACKS / f'{name}.toml', fixed)
  rate = config.client.learning_rate
  points = grid.points(config, {'client.learning_rate': [rate, 1.5 * rate]}, [0, 1])
  planned = planning.plan(points)
  assert planning.groups(planned) == [[0, 1, 2, 3]]
  made = [x.lane for x in planned]
  many = lanes.together(made, 3)
  state, rows, done = many.run(many.init(), 2, np.ones(4, bool))
  assert done.tolist() == [2] * 4
  for i in (0, 3):
    alone, metrics = made[i].sim.run(made[i].sim.init(made[i].params), 2)
    np.testing.assert_array_equal(np.sort(metrics['ids']), np.sort(rows['ids'][i]))
    for a, b in zip(
      jax.tree.leaves(alone.params), jax.tree.leaves(many.params(state, i)), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
