"""Groups of devices that share a model: trip counts in step, what may be divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fedjax_mem.core import groups, packing, tree
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.engine.mesh import mapped, undivided


def seen(mesh, function, *given):
  """Returns what each place on the axis `clients` makes of its row of what is given."""
  split = PartitionSpec(groups.AXIS)
  first, back = (lambda x: x[0]), (lambda x: x[None])
  row = lambda *rows: jax.tree.map(back, function(*jax.tree.map(first, rows)))
  return jax.jit(mapped(row, mesh, split, split))(*given)


def test_without_groups_counts_stay_as_they_are():
  count = jnp.int32(3)
  assert groups.in_step(count) is count and not groups.shared()


@pytest.mark.devices(4)
def test_groups_make_as_many_passes_as_the_largest_and_devices_without_do_not():
  counts = jnp.array([3, 5], jnp.int32)
  assert seen(meshes.make_mesh(4, 2), groups.in_step, counts).tolist() == [5, 5]
  assert seen(meshes.make_mesh(2), groups.in_step, counts).tolist() == [3, 5]


@pytest.mark.devices(2)
def test_what_may_be_divided_is_not_packed(monkeypatch):
  mesh, joined = meshes.make_mesh(2, 2), []
  packed = packing._joined
  monkeypatch.setattr(packing, '_joined', lambda leaves: joined.append(1) or packed(leaves))
  values = {'a': jnp.ones((1, 4)), 'b': jnp.array([[1.0, np.inf]])}

  def within(values):
    assert groups.shared()
    twice = packing.at_once(lambda x: 2 * x, values)
    return twice, tree.finite(twice), tree.finite(twice['a'])

  twice, all_finite, a_finite = seen(mesh, within, values)
  assert not joined
  np.testing.assert_array_equal(twice['a'], 2 * values['a'])
  assert not all_finite[0] and a_finite[0]

  def whole(values):
    assert not groups.shared()
    return packing.at_once(lambda x: 2 * x, values)

  seen(mesh, lambda values: undivided(whole)(values), values)
  assert joined
