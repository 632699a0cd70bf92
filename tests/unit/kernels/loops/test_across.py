"""Sums over devices are those of a loop over the devices in their order, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.engine.mesh import AXIS, make_mesh
from fedjax_mem.kernels.loops import across

P = jax.sharding.PartitionSpec


def summed(parts, devices):
  """Returns the sum over devices of trees [devices, ...]."""

  def share(mine):
    return across.total(jax.tree.map(lambda x: x[0], mine), AXIS)

  mapped = jax.shard_map(
    share, mesh=make_mesh(devices), in_specs=P(AXIS), out_specs=P(), check_vma=False
  )
  return jax.jit(mapped)(parts)


def parts_of(devices, size, seed=0):
  """Returns what each device has: floats of many magnitudes, a scalar, two other dtypes."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(devices, size)) * 2.0 ** rng.integers(-12, 12, (devices, size))
  return {
    'long': rows.astype(np.float32),
    'one': rng.normal(size=devices).astype(np.float32),
    'half': jnp.asarray(rng.normal(size=(devices, 3, 2)), jnp.bfloat16),
    'integers': rng.integers(-(2**31), 2**31, (devices, 2, 5)).astype(np.int32),
  }


def in_order(parts):
  held = jax.tree.map(lambda x: x[0], parts)
  for i in range(1, len(parts['one'])):
    held = jax.tree.map(lambda a, b: a + b, held, jax.tree.map(lambda x, i=i: x[i], parts))
  return held


@pytest.mark.parametrize(
  ('devices', 'size'),
  [
    (2, 7),
    (2, 200_001),
    *(pytest.param(4, d, marks=[pytest.mark.devices(4), pytest.mark.slow]) for d in (7, 200_003)),
  ],
)
def test_devices_are_added_first_to_last(devices, size):
  parts = parts_of(devices, size)
  assert (devices * size > across._WHOLE) == (size > 100)
  tiny.assert_same_bits(summed(parts, devices), in_order(parts))


def test_rows_of_all_devices_come_whole_to_each_to_the_bit():
  rng = np.random.default_rng(0)
  rows = {
    'a': rng.normal(size=(6, 3)).astype(np.float32),
    'b': rng.random(6) > 0.5,
    'c': rng.integers(0, 255, (6, 2, 5)).astype(np.uint8),
    'd': np.array([-0.0, np.nan, 1e-39, np.inf, 1, 2], np.float32),
  }
  share = lambda mine: across.gathered(mine, AXIS, mine)
  mapped = jax.shard_map(share, mesh=make_mesh(2), in_specs=P(AXIS), out_specs=P(), check_vma=False)
  tiny.assert_same_bits(jax.jit(mapped)(rows), rows)


@pytest.mark.parametrize('dtype', ['float32', 'int32', 'bool', 'bfloat16', 'complex64', 'uint8'])
def test_what_comes_after_another_stays_as_it_is(dtype):
  x = jnp.asarray(np.arange(-3, 4)).astype(dtype)
  for before in (jnp.float32(np.nan), jnp.int32(-1), jnp.bool_(True), (), jnp.zeros(0)):
    tiny.assert_same_bits(jax.jit(across.after)(x, before), x)
  text = jax.jit(across.after).lower(x, jnp.float32(1)).compile().as_text()
  assert 'parameter(1)' in text and 'multiply' in text  # the compiler has not seen through it


@pytest.mark.devices(4)
@pytest.mark.slow
def test_the_order_is_of_the_devices_and_not_of_their_values():
  parts = parts_of(4, 1000)
  turned = jax.tree.map(lambda x: x[np.array([2, 0, 3, 1])], parts)
  one, other = summed(parts, 4)['long'], summed(turned, 4)['long']
  assert (np.asarray(one) != np.asarray(other)).any()
  np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
