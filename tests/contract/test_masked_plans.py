"""Masks in the wrong company are refused before anything is traced, naming both layers."""

import numpy as np
import pytest
from reference import given, stages

from fedjax_mem.core import IncompatibleStages, Layer, Stage
from fedjax_mem.stages import compress, privacy
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.select import poisson, round_robin
from fedjax_mem.stages.weigh import equal

N = 6
UPDATES = {'a': np.ones((N, 30), np.float32)}
GRID = integers(1.0, clients=N, bits=16)
MASK = mask(clients=N, bits=16)
DISCRETE = privacy.central(1.0, 1.0, mechanism='discrete_gaussian')


def halve():
  return Layer('halve', client=Stage(lambda ctx, message, state: (message, state, {})))


def noisy(bits=16, clients=N, **kwargs):
  return privacy.distributed(1.0, 1.0, shares=2, clients=clients, dimension=30, bits=bits, **kwargs)


def refused(*told, layers, **kwargs):
  with pytest.raises(IncompatibleStages) as caught:
    given.build(UPDATES, *layers, **kwargs)
  for words in told:
    assert words in str(caught.value), (words, str(caught.value))


@pytest.mark.slow
def test_sound_plans():
  given.build(UPDATES, GRID, MASK)
  given.build(UPDATES, *noisy(), MASK)
  given.build(UPDATES, compress.random_k(0.5, unbiased=False), GRID, MASK)
  given.build(UPDATES, compress.rotate(), GRID, MASK)
  given.build(UPDATES, DISCRETE, mask(clients=N))


def test_masks_over_floats():
  refused("'mask'", "'weigh'", 'floats', 'put integers', layers=[MASK])
  refused("'mask'", "'central'", layers=[privacy.central(1.0, 1.0), MASK])
  floats = Layer('floats', client=Stage(lambda c, m, s: (m, s, {}), facts=GRID.client.facts))
  refused("'mask'", 'float32', 'do not cancel', layers=[floats, MASK])


@pytest.mark.parametrize('place', [0, 1, 2])
def test_robust_rules_and_masks(place):
  layers = [GRID, MASK]
  layers.insert(place, stages.median())
  with pytest.raises(IncompatibleStages) as caught:
    given.build(UPDATES, *layers)
  assert "'robust'" in str(caught.value) and "'mask'" in str(caught.value)


def test_what_comes_after_a_mask():
  refused("'halve'", "'mask'", 'put', layers=[GRID, MASK, halve()])
  refused("'mask'", layers=[GRID, MASK, MASK._replace(name='again')])
  with pytest.raises(IncompatibleStages):
    given.build(UPDATES, GRID, MASK, compress.top_k(0.2))


@pytest.mark.parametrize(
  'codec',
  [
    compress.top_k(0.2),
    compress.sign(),
    compress.eden(),
    compress.error_feedback({'use': 'top_k', 'fraction': 0.2}),
  ],
  ids=lambda c: c.name,
)
def test_codecs_that_do_not_add_under_masks(codec):
  refused(repr(codec.name), "'integers'", 'does not add', layers=[codec, GRID, MASK])
  refused(repr(codec.name), "'grid'", 'does not add', layers=[codec, *noisy(), MASK])


def test_two_moduli():
  wide = mask(clients=N, bits=32)
  refused("'mask'", "'integers'", '2 ** 32', '2 ** 16', layers=[GRID, wide])
  refused("'mask'", "'integer_noise'", 'same bits', layers=[*noisy(), wide])
  refused("'mask'", "'central'", '2 ** 32', layers=[DISCRETE, MASK])


def test_more_clients_than_there_is_room_for():
  few = integers(1.0, clients=N - 1, bits=16)
  refused("'integers'", "'select'", 'clients = 6', layers=[few])
  refused("'grid'", 'room for the sum of 5', layers=[*noisy(clients=N - 1)])
  refused("'mask'", 'clients = 6', layers=[GRID, mask(clients=2, bits=16)])
  # The capacity of a Poisson cohort counts, not what is expected.
  draw = poisson(N, 0.3, capacity=4)
  given.build(UPDATES, integers(1.0, clients=4), select=draw)
  refused('clients = 4', layers=[integers(1.0, clients=3)], select=draw)


def test_integers_twice():
  refused("'integers'", 'int32', layers=[GRID, integers(1.0, clients=N)._replace(name='again')])
  refused(
    "'integers'", "'integer_noise'", layers=[*noisy(), integers(1.0, clients=N, dimension=64)]
  )


def test_distributed_noise_keeps_the_rules_of_all_noise():
  refused("'integer_noise'", "'weigh'", layers=[*noisy()], weigh=equal())
  refused("'integer_noise'", 'both add central noise', layers=[privacy.central(1.0, 1.0), *noisy()])
  refused("'grid'", layers=[*noisy(), compress.top_k(0.2)])


def test_noise_whose_grid_does_not_know_its_size():
  refused("'central'", "'integers'", 'give it dimension', layers=[privacy.central(1.0, 1.0), GRID])
  sized = integers(1.0, clients=N, bits=16, dimension=30)
  given.build(UPDATES, privacy.central(1.0, 1.0), sized, select=round_robin(N, N))
