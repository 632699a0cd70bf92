"""Who asks for another platform gets it, and no program that was traced for the one there is."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_mem.core import platforms


def test_another_platform_is_there_within_its_context_alone():
  there = jax.default_backend()
  assert platforms.current() == there
  for name, expected in (('cuda', 'gpu'), ('rocm', 'gpu'), ('tpu', 'tpu'), ('cpu', 'cpu')):
    with platforms.made_for(name):
      assert platforms.current() == expected
      with platforms.made_for('tpu'):
        assert platforms.current() == 'tpu'
      assert platforms.current() == expected
    assert platforms.current() == there
  with pytest.raises(ValueError, match=r"name must be one of .*'cuda'.*, got 'metal'"):
    platforms.made_for('metal')


def test_what_was_traced_for_one_platform_is_not_taken_for_another():
  inner = jax.jit(lambda x: x + (5 if platforms.current() == 'tpu' else 3))
  here = jax.jit(lambda x: inner(x) if platforms.current() == 'tpu' else -inner(x))
  assert here(jnp.int32(1)) == -4
  with platforms.made_for('tpu'):
    assert here(jnp.int32(1)) == 6
  assert here(jnp.int32(1)) == -4
