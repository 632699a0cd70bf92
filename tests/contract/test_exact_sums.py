"""A crafted cohort moves the sum under noise by no more than the clip norm, in every execution.

Casacuberta et al. (2022), arXiv 2207.10635: in float32 each addition may round, and always in the
same direction. One client more or less then decides about the rounding of all that follow.
"""

import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import Bounds, Layer, Noises, Stage, rounding
from fedjax_mem.engine import Execution
from fedjax_mem.stages import privacy

C = 1.0
MODES = {
  'loop': Execution(mode='loop', devices=1),
  'chunk': Execution(mode='chunk', chunk=32, devices=1),
  'vmap': Execution(mode='vmap', devices=1),
  'devices': Execution(mode='chunk', chunk=8, devices=4),
}


def crafted(n):
  """Returns updates [n, 1] of norm up to C, the first of which decides how the others are rounded.

  With it the others begin at a power of two, n / 2: there 1.5 units in the last place are a tie,
  always rounded up to 2. Without it they begin one lower, where the unit is half as large.
  """
  half = (n - 1) // 2
  unit = 2.0 ** (np.log2(half) - 23)
  rows = np.concatenate([np.ones(half), np.full(n - half, 1.5 * unit)])
  return rows.astype(np.float32)[:, None]


def probed(layer):
  """Returns the layer without its noise: what the noise would be added to is released."""
  quiet = lambda ctx, m, s: (m, s, {})
  server = Stage(quiet, facts=(Noises(layer.fact(Noises).mechanism),))
  return Layer(layer.name, client=Stage(quiet, facts=layer.client.facts), server=server)


def total(rows, mode) -> np.ndarray:
  sim = given.build({'a': rows}, probed(privacy.central(C, 1.0)), execution=mode)
  return given.sums(sim)[0]


def plain(rows) -> float:
  held = np.float32(0)
  for x in rows[:, 0]:
    held = np.float32(held + x)
  return float(held)


@pytest.mark.slow
@pytest.mark.devices(4)
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('n', [4_097, 16_385])
def test_the_sum_moves_by_the_clip_norm(n, mode, monkeypatch):
  monkeypatch.setattr(tiny, 'MODES', MODES)
  with_it = crafted(n)
  without = with_it.copy()
  without[0] = 0
  moved = np.abs(total(with_it, mode) - total(without, mode))
  assert moved <= C * (1 + 1e-3)
  # The cohort is hard: a plain sum of these numbers moves by more than what it would be noised for.
  assert abs(plain(with_it) - plain(without)) > 1.2 * C


def test_noise_is_told_of_the_rounding():
  sim = given.build({'a': np.zeros((50, 1), np.float32)}, privacy.central(C, 1.0))
  layers, specs = sim.setting.layers, sim.setting.specs
  bound = layers.bound(layers[-1], 'server', specs)
  assert bound.l2 == pytest.approx(C * (1 + rounding(50)), rel=1e-12)
  assert bound.l2 > C


def test_a_linear_server_side_before_the_noise_may_round_too():
  keeps = Bounds(lambda ctx, bound: bound)
  same = Layer('same', server=Stage(lambda c, m, s: (m, s, {}), facts=(keeps,)))
  sim = given.build({'a': np.zeros((50, 1), np.float32)}, privacy.central(C, 1.0), same)
  layers, specs = sim.setting.layers, sim.setting.specs
  central = next(x for x in layers if x.name == 'central')
  l2 = layers.bound(central, 'server', specs).l2
  assert l2 == pytest.approx(C * (1 + rounding(50)) * (1 + rounding(50, after=True)), rel=1e-12)


def test_integers_are_exact():
  layer = privacy.central(C, 1.0, mechanism='discrete_gaussian')
  sim = given.build({'a': np.zeros((50, 1), np.float32)}, layer)
  layers, specs = sim.setting.layers, sim.setting.specs
  assert not layers.compensated and layers.bound(layers[-1], 'server', specs).l2 == 1024
