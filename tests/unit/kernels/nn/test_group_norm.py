"""Group normalisation against its formula in NumPy and the derivative that JAX finds of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.nn.group_norm import group_norm

EPSILON = 1e-3


def _arguments(mean=0.5):
  rng = np.random.default_rng(0)
  x = rng.normal(mean, 1.5, (4, 3, 5, 6))
  return tuple(jnp.float32(a) for a in (x, rng.normal(1, 0.3, 6), rng.normal(size=6)))


def _formula(x, scale, bias, groups, xp=jnp):
  grouped = x.reshape(*x.shape[:3], groups, -1)
  mean = grouped.mean((0, 1, 4), keepdims=True)
  variance = xp.square(grouped - mean).mean((0, 1, 4), keepdims=True)
  normal = ((grouped - mean) / xp.sqrt(variance + EPSILON)).reshape(x.shape)
  return normal * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize('groups', [1, 2, 6])
def test_values_and_gradients(groups):
  arguments = _arguments()
  weight = jnp.float32(np.random.default_rng(1).normal(size=arguments[0].shape))
  ours = lambda *a: (group_norm(*a, groups, EPSILON) * weight).sum()
  plain = lambda *a: (_formula(*a, groups) * weight).sum()
  exact = _formula(*(np.float64(a) for a in arguments), groups, np)
  np.testing.assert_allclose(group_norm(*arguments, groups, EPSILON), exact, atol=2e-6)
  actuals, expecteds = (jax.grad(f, (0, 1, 2))(*arguments) for f in (ours, plain))
  for actual, expected in zip(actuals, expecteds, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * jnp.abs(expected).max())


def test_a_large_mean_does_not_cancel():
  x, scale, bias = _arguments(mean=3e3)
  exact = _formula(*(np.float64(a) for a in (x, scale, bias)), 2, np)
  np.testing.assert_allclose(group_norm(x, scale, bias, 2, EPSILON), exact, atol=2e-3)


def test_every_client_with_its_own_scale():
  x, scale, bias = _arguments()
  scales = jnp.stack([scale, -scale])
  both = jax.vmap(lambda s: group_norm(x, s, bias, 2, EPSILON))(scales)
  np.testing.assert_allclose(both[1], group_norm(x, -scale, bias, 2, EPSILON), atol=1e-6)
