"""Checksums of shards: the same sum however an array is cut, and any change of it shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_mem.engine.mesh import AXIS, make_mesh
from fedjax_mem.runner import checksums


def arrays():
  rng = np.random.default_rng(0)
  return {
    'floats': rng.normal(size=(8, 5)).astype(np.float32),
    'row': rng.normal(size=12).astype(np.float32),
    'bytes': rng.integers(0, 255, (4, 3, 2)).astype(np.uint8),
    'half': np.array(jnp.asarray(rng.normal(size=(6, 2)), jnp.bfloat16)),
    'complex': (rng.normal(size=(4, 2)) + 1j).astype(np.complex64),
    'double': rng.normal(size=(4,)),
    'flags': rng.random((4, 2)) > 0.5,
    'long': rng.normal(size=(2, 300_001)).astype(np.float32),
  }


def whole(x):
  return checksums.total(checksums.of(x))


@pytest.mark.devices(2)
# No device has float64 here.
@pytest.mark.parametrize('name', [x for x in arrays() if x != 'double'])
def test_shards_add_up_to_the_whole_however_it_is_cut(name):
  x, mesh = arrays()[name], make_mesh(2)
  cuts = [PartitionSpec(), PartitionSpec(AXIS)]
  cuts += [PartitionSpec(None, AXIS)] if x.ndim > 1 and x.shape[1] % 2 == 0 else []
  for cut in cuts:
    put = jax.device_put(x, NamedSharding(mesh, cut))
    shards = checksums.of(put)
    assert len(shards) == (1 if cut == PartitionSpec() else 2)  # one for equal copies
    assert checksums.total(shards) == whole(x)


@pytest.mark.parametrize('name', arrays())
def test_every_change_shows(name):
  x = arrays()[name]
  before = whole(x)
  raw = x.reshape(-1).view(np.uint8)
  for place in (0, len(raw) // 2, len(raw) - 1):
    raw[place] ^= 1
    assert whole(x) != before
    raw[place] ^= 1
  assert whole(x) == before
  if x.ndim > 1:
    assert whole(np.ascontiguousarray(x[::-1])) != before  # rows in another order
  lost = x.copy()
  lost.reshape(-1)[-(x.size // 2) :] = 0
  assert whole(lost) != before or not x.reshape(-1)[-(x.size // 2) :].any()


def test_empty_arrays_have_a_sum():
  assert whole(np.zeros((0, 3), np.float32)) == 0 and whole(np.float32(0.0)) != 0
