"""What users call a model and a data loader; the discrete local noise."""

import asyncio

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_mem import models
from fedjax_mem.federated import (
  ClientConfig,
  DifferentialPrivacy,
  FederatedClient,
  FederatedServer,
  PrivacyConfig,
  ServerConfig,
  as_model,
  data,
)

X, Y = np.ones((5, 4), np.float32), np.array([0, 1, 2, 1, 0])


class Source:
  """As TFDS gives one."""

  def __len__(self):
    return 5

  def __getitems__(self, rows):
    return [{'image': X[i], 'label': Y[i]} for i in rows]


class Dataset:
  """As torch's: examples by number."""

  def __len__(self):
    return 5

  def __getitem__(self, row):
    return Tensor(X[row]), int(Y[row])


class Tensor:
  """As torch's, in what matters here: an array after it is asked for one."""

  def __init__(self, values):
    self.values = values

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.values, dtype)


class Loader:
  """As torch's `DataLoader`: an iterator of its own each time, batches of tensors."""

  def __len__(self):
    return 2

  def __iter__(self):
    return iter([[Tensor(X[:3]), Tensor(Y[:3])], [Tensor(X[3:]), Tensor(Y[3:])]])


LOADERS = {
  'arrays': (X, Y),
  'mapping': {'x': X, 'y': Y},
  'batches': [(X[:3], Y[:3]), (X[3:], Y[3:])],
  'examples': list(zip(X, Y, strict=True)),
  'source': Source(),
  'dataset': Dataset(),
  'loader': Loader(),
}


@pytest.mark.parametrize('loader', LOADERS.values(), ids=LOADERS)
def test_loaders(loader):
  found = data.read(loader, 3)
  np.testing.assert_array_equal(found.x, X)
  np.testing.assert_array_equal(found.y, Y)


@pytest.mark.parametrize(
  'loader,why',
  [
    ((X, np.eye(3)[Y]), 'must be integers'),
    ((X, np.eye(3, dtype=int)[Y]), r'class numbers of shape \[n\], got shape \(5, 3\)'),
    ((X, Y + 1), r'in \[0, 3\)'),
    ((X * np.nan, Y), 'finite'),
    ((X[:4], Y), 'as many inputs as labels'),
    ([(X, Y), (X[:, :2], Y)], 'of one shape'),
    ([], 'at least one batch'),
    ('text', 'batches'),
    (7, 'got an object of int'),
    ((np.ones((5, 3), np.float32), Y), r'of the shape \(4,\)'),
  ],
)
def test_examples_that_are_refused(loader, why):
  with pytest.raises(ValueError, match=why):
    FederatedClient(ClientConfig(client_id='c'), models.build('logistic', (4,), 3), loader)


@pytest.mark.slow
def test_ids_are_names_and_no_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = ClientConfig(client_id='../../etc/passwd', local_epochs=1)
  client = FederatedClient(config, models.build('logistic', (4,), 3), (X, Y))
  assert asyncio.run(client.train_round()).client_id == '../../etc/passwd'
  assert not list(tmp_path.iterdir())
  for wrong in ('', 7, None, '\ud800'):
    with pytest.raises(ValueError, match='client_id must be a text'):
      ClientConfig(client_id=wrong)


@pytest.mark.slow
def test_a_bound_module_starts_from_its_parameters():
  # A copy of it has none; the server's are handed out.
  bound = nn.Dense(3).bind(nn.Dense(3).init(jax.random.key(5), X))
  server = FederatedServer(ServerConfig(min_clients=1, rounds=1), bound)
  config = ClientConfig(client_id='c', local_epochs=1, learning_rate=1e-6)
  client = FederatedClient(config, bound.copy(), (X, Y))
  update = asyncio.run(server.select_clients([client])[0].train_round())
  assert asyncio.run(server.aggregate([update])).participants == ('c',)
  after = server.get_global_model().params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after, bound.variables['params']
  )


@pytest.mark.slow
def test_models():
  ours = models.build('logistic', (4,), 3)
  bare = nn.Dense(3)
  variables = bare.init(jax.random.key(1), X)
  functions = (lambda key: jnp.zeros((4, 3)), lambda p, x: x @ p)
  kinds = (ours, bare, bare.bind(variables), (bare, variables), functions)
  for kind in (*kinds, nnx.Linear(4, 3, rngs=nnx.Rngs(0))):
    found = as_model(kind, (4,))
    assert found(X).shape == (5, 3) and found.copy().digest == found.digest
  # Copies share one program, also where a module has no hash.
  for module in (bare, nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])):
    one, other = as_model(module, (4,)), as_model(module.copy(), (4,))
    assert one.digest == other.digest and one.model is other.model
  assert as_model(bare, (4,)).model is not as_model(nn.Dense(3, use_bias=False), (4,)).model
  with pytest.raises(ValueError, match='must be a FederatedModel'):
    as_model('resnet', (4,))


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', ['gaussian', 'laplace', 'discrete_gaussian'])
def test_mechanisms_keep_their_budget_and_scale(mechanism):
  config = PrivacyConfig(epsilon=3.0, mechanism=mechanism, max_grad_norm=0.5)
  dp = DifferentialPrivacy(config, noise_seed=1)
  noise = dp.apply({'w': jnp.zeros(20_000)})['w']
  wanted = dp.noise_multiplier * 0.5 * (2**0.5 if mechanism == 'laplace' else 1.0)
  assert abs(float(noise.std()) / wanted - 1) < 0.05
  assert 2.9 < dp.get_privacy_spent().epsilon <= 3.0
