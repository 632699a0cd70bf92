"""Who runs where: at home as far as there is room, with little padding, in equal shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import Member
from fedjax_mem.engine import places
from fedjax_mem.engine.cast import Row


def cohort_of(ids, population):
  ids = jnp.asarray(ids, jnp.int32)
  real = ids < population
  return Row(Member(ids, real, real, jnp.ones(len(ids))), ids * 10, jnp.where(real, 3, 0))


@pytest.mark.slow
@pytest.mark.parametrize('population, devices', [(8, 2), (12, 4), (40, 8), (6, 1)])
def test_clients_run_at_home_as_far_as_there_is_room(population, devices):
  rng = np.random.default_rng(population)
  for room in range(1, population // devices + 1):
    size = rng.integers(0, room * devices + 1)
    ids = np.full(room * devices, population)
    ids[rng.permutation(room * devices)[:size]] = rng.permutation(population)[:size]
    row = places.at_home(cohort_of(ids, population), population, devices)
    out = np.asarray(row.client.id)
    assert sorted(out) == sorted(ids)
    np.testing.assert_array_equal(row.start, out * 10)
    np.testing.assert_array_equal(row.client.real, out < population)
    home = out // (population // devices)
    here = np.repeat(np.arange(devices), room)
    real = out < population
    per_device = np.bincount(home[real], minlength=devices)[:devices]
    # No more are away than one device has too many.
    assert ((home != here) & real).sum() == np.maximum(per_device - room, 0).sum()


def test_clients_at_home_keep_their_order_and_strangers_fill_what_is_free():
  ids = [5, 0, 16, 3, 7, 1, 2, 6]  # of 16 clients on 2 devices: 7 at home on the first, none on 1
  row = places.at_home(cohort_of(ids, 16), 16, 2)
  assert np.asarray(row.client.id).tolist() == [5, 0, 3, 7, 1, 2, 6, 16]


@pytest.mark.parametrize(('population', 'devices'), [(8, 2), (10, 4), (3, 8), (17, 5), (1, 1)])
def test_blocks_share_the_clients_and_each_is_at_home_in_its_own(population, devices):
  bounds = places.blocks(population, devices)
  sizes = [b - a for a, b in bounds]
  assert sum(sizes) == population and max(sizes) - min(sizes) <= 1 and len(sizes) == devices
  whose = np.concatenate([np.full(n, d) for d, n in enumerate(sizes)])
  ids = jnp.arange(population + 1)
  found = np.asarray(places.home(ids, population, devices))
  np.testing.assert_array_equal(found, [*whose, devices])  # the last is padding


def test_homes_of_many_clients_do_not_overflow():
  population, devices = 2**31 - 2, 4096
  ids = jnp.asarray([0, population // 2, population - 1, population], jnp.int32)
  found = places.home(ids, population, devices)
  assert found.tolist() == [0, 2047, 4095, 4096]


def test_clients_of_a_device_are_sorted_by_their_examples():
  row = cohort_of(np.arange(6), 6)
  row = Row(row.client, row.start, jnp.asarray([1, 3, 2, 5, 9, 7]))
  assert places.by_size(row, 2).client.id.tolist() == [1, 2, 0, 4, 5, 3]
  assert int(places.moved(row, 6, 2)) == 0
  turned = jax.tree.map(lambda x: x[::-1], row)
  assert int(places.moved(turned, 6, 2)) == 6


def counted(counts):
  row = cohort_of(range(len(counts)), len(counts))
  return Row(row.client, row.start, jnp.asarray(counts))


@pytest.mark.first(1)
@pytest.mark.parametrize('chunk, devices', [(1, 1), (1, 8), (2, 4), (4, 2), (8, 1), (3, 2)])
def test_arranging_permutes_and_balances(chunk, devices):
  rng = np.random.default_rng(chunk * 10 + devices)
  size = chunk * devices * 4
  waste, before = [], []
  for _ in range(20):
    counts = rng.lognormal(3, 1, size).astype(np.int32) + 1
    row = jax.tree.map(np.asarray, places.arrange(counted(counts), chunk, devices))
    assert sorted(row.client.id.tolist()) == list(range(size))
    np.testing.assert_array_equal(row.count, counts[row.client.id])
    # The time of a device is the sum of the largest count of its chunks.
    time = lambda c: c.reshape(devices, -1, chunk).max(-1).sum(-1).max()
    waste.append(time(row.count))
    before.append(time(counts))
  if chunk * devices > 1:
    assert np.mean(waste) < 0.95 * np.mean(before)


def test_alike_sizes_are_side_by_side():
  row = places.arrange(counted([1, 8, 2, 7, 3, 6, 4, 5]), 2, 2)
  assert np.asarray(row.count).reshape(2, 2, 2).tolist() == [[[8, 7], [2, 1]], [[6, 5], [4, 3]]]
