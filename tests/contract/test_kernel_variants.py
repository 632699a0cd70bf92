"""Kernels give the same compiled and uncompiled, and are traced once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from fedjax_mem.kernels.codes import low_rank, modular, packing, quantize, random_k, rotate
from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.nn import pool
from fedjax_mem.kernels.norms import clip, gram
from fedjax_mem.kernels.order import columns, topk
from fedjax_mem.kernels.random import noise

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (200,))
ROWS = jax.random.normal(jax.random.key(2), (6, 40))
ON = jnp.arange(6) != 4
CODES = jnp.arange(200, dtype=jnp.uint8) % 8
TABLE = noise.discrete_table(3.0)
CASES = {
  'clip': lambda x: clip.clip_by_global_norm({'a': x, 'b': x[:7]}, 2.0),
  'squared distances': lambda x: gram.squared_distances(ROWS + x[0], ON),
  'top-k': lambda x: topk.kept(x, 20),
  'top-k, packed': lambda x: topk.pack(x, 20),
  'random-k': lambda x: random_k.pick(x, random_k.indices(KEY, 200, 20)),
  'median': lambda x: columns.median(ROWS + x[0], ON),
  'trimmed mean': lambda x: columns.trimmed_mean(ROWS + x[0], ON, 1),
  'quantize, at random': lambda x: quantize.stochastic(KEY, x, 4, 'max', 64),
  'quantize, to the nearest': lambda x: quantize.deterministic(x, 4, 'max', 64),
  'signs': quantize.sign,
  'packed levels': lambda x: packing.pack(CODES + (x[:1] > 9).astype(jnp.uint8), 3),
  'rotation': lambda x: rotate.rotate(KEY, x, 64),
  'EDEN': lambda x: rotate.eden_encode(KEY, x, 2, 64),
  'low rank': lambda x: low_rank.encode(x.reshape(20, 10), low_rank.start(KEY, 10, 2)),
  'integers modulo': lambda x: modular.wrapped((x * 1000).astype(jnp.int32), 8),
  'Gaussian noise': lambda x: noise.gaussian(KEY, x, 2.0),
  'discrete noise': lambda x: noise.tabled(KEY, x, TABLE),
  'max pool': lambda x: pool.max_pool(x.reshape(10, 20, 1, 1)),
  'parts of a sum': lambda x: parts.take(x, jnp.int32(8), 16),
}


@pytest.mark.slow
class KernelTest(chex.TestCase):
  """Every kernel under chex's variants, against the value that it has under `jax.jit`."""

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*CASES)
  def test_every_variant_gives_the_same(self, name):
    found = self.variant(chex.assert_max_traces(CASES[name], n=1))(X)
    wanted = jax.jit(CASES[name])(X)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    chex.assert_trees_all_close(found, wanted, rtol=2e-6, atol=2e-6)

  @parameterized.parameters(*CASES)
  def test_a_second_call_is_not_traced_again(self, name):
    f = jax.jit(chex.assert_max_traces(CASES[name], n=1))
    first, second = f(X), f(np.asarray(X) + 0)
    chex.assert_trees_all_equal(first, second)
