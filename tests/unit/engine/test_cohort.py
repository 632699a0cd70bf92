"""Cohorts: padding, an order that wastes little, rows read and written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import Member
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine.cast import Row
from fedjax_mem.engine.mesh import make_mesh


def cohort_of(ids):
  ids = jnp.array(ids, jnp.int32)
  on = jnp.ones(len(ids), bool)
  return Member(ids, on, on, jnp.full(len(ids), 0.5, jnp.float32))


def rows_of(counts):
  return Row(cohort_of(range(len(counts))), jnp.zeros(len(counts), jnp.int32), jnp.array(counts))


def test_padding_has_the_id_n_and_is_neither_real_nor_arrived():
  padded = tiny.host(cohorts.pad(cohort_of([3, 1]), 4, 10))
  assert padded.id.tolist() == [3, 1, 10, 10]
  assert padded.real.tolist() == padded.arrived.tolist() == [True, True, False, False]
  assert padded.chance.tolist() == [0.5, 0.5, 1, 1]
  types = lambda m: [x.dtype for x in m]
  assert types(padded) == types(tiny.host(cohort_of([3])))


def test_padding_has_no_examples():
  row = cohorts.rows(tiny.population(), cohorts.pad(cohort_of([3, 1]), 4, tiny.N))
  assert row.count.tolist() == [4, 9, 0, 0] and row.start[:2].tolist() == [17, 3]


# The rows of a slot, one of every device, are 24 bytes a device; of 3 slots' room 2 are used.
@pytest.mark.first(1)
@pytest.mark.devices(2)
@pytest.mark.parametrize(
  'devices, exchanged',
  [
    *((1, 2**23), (2, 2**23), (2, 1), (2, 48), (2, 72)),
    pytest.param(4, 1, marks=pytest.mark.devices(4)),
    pytest.param(4, 48, marks=pytest.mark.devices(4)),
  ],
)
def test_rows_are_gathered_and_committed_by_id(devices, exchanged, monkeypatch):
  """All at once, one row of every device at a time, or as many as there is room for."""
  monkeypatch.setattr(cohorts, 'EXCHANGED', exchanged)
  table = {'a': jnp.arange(10.0), 'b': jnp.zeros((10, 2), jnp.int32)}
  ids = jnp.array([4, 10, 0, 7, 2, 9, 3, 1], jnp.int32)  # the second is padding
  ok = jnp.array([True, True, False, True, True, True, True, True])
  old = cohorts.gather(table, ids)
  assert old['a'].shape == (8,) and old['a'][0] == 4 and old['a'][2] == 0
  rows = jnp.array([40.0, jnp.nan, 99.0, 70.0, 20.0, 90.0, 30.0, 10.0])
  new = {'a': rows, 'b': jnp.stack([rows, rows + 1], 1).astype(jnp.int32)}
  mesh = make_mesh(devices)
  commit = jax.jit(lambda table, ids, ok, new: cohorts.commit(table, ids, ok, new, mesh))
  out = commit(table, ids, ok, new)
  assert out['a'].tolist() == [0, 10, 20, 30, 40, 5, 6, 70, 8, 90]
  assert out['b'][:, 0].tolist() == [0, 10, 20, 30, 40, 0, 0, 70, 0, 90]
  assert out['b'][:, 1].tolist() == [0, 11, 21, 31, 41, 0, 0, 71, 0, 91]
  # Every device holds the same.
  for shard in jax.tree.leaves(out['a'].addressable_shards):
    np.testing.assert_array_equal(shard.data, out['a'])
