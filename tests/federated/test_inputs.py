"""What users call a model and a data loader; the discrete local noise."""

import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_mem import models
from fedjax_mem.federated import (
  DifferentialPrivacy,
  PrivacyConfig,
  as_model,
  compression,
  data,
  model,
  privacy,
)

X, Y = np.ones((5, 4), np.float32), np.array([0, 1, 2, 1, 0])


class Source:
  """As TFDS gives one."""

  def __len__(self):
    return 5

  def __getitems__(self, rows):
    return [{'image': X[i], 'label': Y[i]} for i in rows]


@pytest.mark.parametrize(
  'loader',
  [(X, Y), {'x': X, 'y': Y}, [(X[:3], Y[:3]), (X[3:], Y[3:])], Source()],
  ids=['arrays', 'mapping', 'batches', 'source'],
)
def test_loaders(loader):
  found = data.read(loader, 3)
  np.testing.assert_array_equal(found.x, X)
  np.testing.assert_array_equal(found.y, Y)


def test_models():
  ours = models.build('logistic', (4,), 3)
  bare = nn.Dense(3)
  variables = bare.init(jax.random.key(1), X)
  functions = (lambda key: jnp.zeros((4, 3)), lambda p, x: x @ p)
  kinds = (ours, bare, bare.bind(variables), (bare, variables), functions)
  for kind in (*kinds, nnx.Linear(4, 3, rngs=nnx.Rngs(0))):
    found = as_model(kind, (4,))
    assert found(X).shape == (5, 3) and found.copy().digest == found.digest
  assert as_model(bare, (4,)).digest == as_model(bare.copy(), (4,)).digest
  with pytest.raises(ValueError, match='must be a FederatedModel'):
    as_model('resnet', (4,))


@pytest.mark.parametrize('mechanism', ['gaussian', 'laplace', 'discrete_gaussian'])
def test_mechanisms_keep_their_budget_and_scale(mechanism):
  config = PrivacyConfig(epsilon=3.0, mechanism=mechanism, max_grad_norm=0.5)
  dp = DifferentialPrivacy(config, seed=1)
  noise = dp.apply({'w': jnp.zeros(20_000)})['w']
  wanted = dp.noise_multiplier * 0.5 * (2**0.5 if mechanism == 'laplace' else 1.0)
  assert abs(float(noise.std()) / wanted - 1) < 0.05
  assert 2.9 < dp.get_privacy_spent().epsilon <= 3.0


@pytest.mark.parametrize('module', [compression, model, privacy])
def test_doctests(module):
  found = doctest.testmod(module)
  assert found.attempted and not found.failed
