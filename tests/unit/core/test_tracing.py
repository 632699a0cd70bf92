"""A function is traced once for its shapes, whoever calls it and whatever it is mapped over."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core.tracing import once


def test_one_trace_serves_all_programs_of_equal_shapes():
  seen = []

  @once(1)
  def scaled(x, by):
    seen.append((x.shape, by))
    return by * x

  x = jnp.arange(3.0)
  for program in (lambda x: scaled(x, 2), lambda x: scaled(x, 2) + scaled(-x, 2)):
    jax.eval_shape(program, x)
    jax.jit(program)(x)
    jax.jit(jax.vmap(program))(jnp.stack([x, x]))
  assert seen == [((3,), 2)]
  np.testing.assert_array_equal(scaled(x, 3), 3 * x)
  scaled(jnp.ones((2, 2)), 3)
  assert seen[1:] == [((3,), 3), ((2, 2), 3)]
