"""Convolutions of one example: under `vmap` they are those of a batch, and so are the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.nn import alone
from fedjax_mem.kernels.nn import conv as several

CASES = [
  ('HWBC', (8, 7, 1, 9), (3, 3, 9, 8), (1, 1), 'SAME'),
  ('HWBC', (8, 7, 1, 2), (3, 2, 2, 4), (2, 1), [(1, 0), (0, 2)]),
  ('CHWB', (1, 7, 8, 1), (3, 3, 1, 4), (1, 2), 'VALID'),
]


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def each(conv, options, kernels=None):
  """Returns (x, kernel) -> (losses, gradients of both) for each example."""
  one = lambda x, k: jnp.sin(conv(x, k, **options)).sum()
  return jax.jit(jax.vmap(jax.value_and_grad(one, (0, 1)), (0, kernels)))


@pytest.mark.slow
@pytest.mark.parametrize('layout, x, kernel, strides, padding', CASES)
def test_examples_under_vmap_are_a_batch_of_convolutions(
  layout, x, kernel, strides, padding, monkeypatch
):
  options = dict(strides=strides, padding=padding, layout=layout)
  inputs, weights = draw(0, 5, *x), draw(1, *kernel)
  wanted = each(several.conv, options)(inputs, weights)
  sizes, conv = set(), several.conv
  alone._made.cache_clear()

  def noted(x, kernel, **options):
    sizes.add(x.shape[layout.index('B')])
    return conv(x, kernel, **options)

  monkeypatch.setattr(several, 'conv', noted)
  got = each(alone.conv, options)(inputs, weights)
  alone._made.cache_clear()
  assert 5 in sizes
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, wanted)


@pytest.mark.slow
def test_kernels_and_clients_side_by_side():
  layout, x, kernel, strides, padding = CASES[0]
  options = dict(strides=strides, padding=padding, layout=layout)
  inputs, weights = draw(0, 4, 5, *x), draw(1, 4, *kernel)
  same = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  # Clients with kernels of their own, each with several examples; then each with one.
  clients = [jax.vmap(each(conv, options))(inputs, weights) for conv in (alone.conv, several.conv)]
  single = [each(conv, options, 0)(inputs[:, 0], weights) for conv in (alone.conv, several.conv)]
  jax.tree.map(same, *clients)
  jax.tree.map(same, *single)


def test_a_batch_is_convolved_as_ever():
  options = dict(strides=(1, 1), padding='SAME', layout='HWBC')
  x, kernel = draw(0, 6, 6, 3, 2), draw(1, 3, 3, 2, 4)
  got, wanted = alone.conv(x, kernel, **options), several.conv(x, kernel, **options)
  np.testing.assert_array_equal(got, wanted)
