"""Server optimizers against Algorithm 2 of Reddi et al. (2021), and apart from optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import twins

from fedjax_mem.optim import SERVER_OPTIMIZERS, fedadagrad, fedadam, fedavgm, fedyogi, sgd

ADAPTIVE = {'fedadagrad': fedadagrad, 'fedadam': fedadam, 'fedyogi': fedyogi}
RNG = np.random.default_rng(0)
START = RNG.normal(size=6)
# Small and large updates: v starts at tau**2, and Yogi's sign changes.
UPDATES = RNG.normal(size=(8, 6)) * np.array([1e-4, 1e-2, 1, 1, 5, 1])


def run(optimizer, dtype=jnp.float32):
  """Returns the parameters after each update, [8, 6]."""
  x = {'a': jnp.asarray(START[:2], dtype), 'b': jnp.asarray(START[2:].reshape(2, 2), dtype)}
  state, path = optimizer.init(x), []
  for d in UPDATES:
    updates = {'a': jnp.asarray(d[:2], dtype), 'b': jnp.asarray(d[2:].reshape(2, 2), dtype)}
    step, state = optimizer.update(updates, state, x)
    x = optax.apply_updates(x, step)
    path.append(np.concatenate([np.ravel(x['a']), np.ravel(x['b'])]))
  return np.array(path, np.float64)


def twin(name, lr, **kwargs):
  step, x, state, path = twins.server_optimizer(name, lr, **kwargs), START, None, []
  for d in UPDATES:
    x, state = step(x, d, state)
    path.append(x)
  return np.array(path)


@pytest.mark.parametrize('name', ADAPTIVE)
def test_adaptive_steps_are_algorithm_2(name):
  np.testing.assert_allclose(run(ADAPTIVE[name](0.1)), twin(name, 0.1), rtol=2e-5, atol=1e-6)
  kwargs = {} if name == 'fedadagrad' else {'b1': 0.5, 'b2': 0.8}
  made = run(ADAPTIVE[name](0.03, tau=0.1, **kwargs))
  np.testing.assert_allclose(made, twin(name, 0.03, tau=0.1, **kwargs), rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_they_are_not_optaxs():
  ours = run(fedadam(0.1, b1=0.9, b2=0.99, tau=1e-3))
  theirs = run(optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3))
  assert np.abs(ours - theirs).max() > 0.05
  # No bias correction, and v starts at tau**2: the first step, in closed form.
  first = START - 0.1 * 0.1 * UPDATES[0] / (np.sqrt(0.99e-6 + 0.01 * UPDATES[0] ** 2) + 1e-3)
  np.testing.assert_allclose(ours[0], first, rtol=1e-5)
  assert np.abs(run(fedyogi(0.1)) - run(optax.yogi(0.1, b2=0.99))).max() > 0.05
  assert np.abs(run(fedadagrad(0.1)) - run(optax.adagrad(0.1))).max() > 0.05


def test_sgd_and_momentum():
  path, x, v = [], START, 0
  for d in UPDATES:
    v = 0.9 * v + d
    x = x - 0.3 * v
    path.append(x)
  np.testing.assert_allclose(run(fedavgm(0.3)), path, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(run(sgd(0.3)), START - 0.3 * UPDATES.cumsum(0), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(run(fedavgm(0.3, momentum=0.0)), run(sgd(0.3)), atol=1e-6)


@pytest.mark.parametrize('name', SERVER_OPTIMIZERS)
def test_states_keep_their_types_and_zero_updates_are_harmless(name):
  optimizer = SERVER_OPTIMIZERS[name](learning_rate=0.1)
  x = {'w': jnp.zeros(3), 'n': jnp.zeros((), jnp.bfloat16)}
  state = optimizer.init(x)
  step, new = optimizer.update(jax.tree.map(jnp.zeros_like, x), state, x)
  types = lambda t: jax.tree.map(lambda a: (jnp.shape(a), a.dtype, a.weak_type), t)
  assert types(new) == types(state) and types(step) == types(x)
  assert not any(np.any(u) for u in jax.tree.leaves(step))


@pytest.mark.parametrize('name', SERVER_OPTIMIZERS)
def test_they_descend_a_parabola(name):
  optimizer = SERVER_OPTIMIZERS[name](learning_rate=0.1)
  x = jnp.array([2.0, -1.0])
  state = optimizer.init(x)
  for _ in range(200):
    step, state = optimizer.update(x, state, x)
    x = optax.apply_updates(x, step)
  assert float(jnp.abs(x).max()) < 0.3


@pytest.mark.parametrize(
  'make, kwargs, message',
  [
    (fedadam, {'b1': 1.0}, r'b1 must be a number in \[0, 1\), got 1.0'),
    (fedyogi, {'b2': -0.1}, r'b2 must be a number in \[0, 1\), got -0.1'),
    (fedadagrad, {'tau': 0}, 'tau must be a finite number > 0, got 0'),
    (fedavgm, {'momentum': 1}, r'momentum must be a number in \[0, 1\), got 1'),
    (sgd, {'learning_rate': float('nan')}, 'learning_rate must be a finite number > 0, got nan'),
  ],
)
def test_hyper_parameters_out_of_range(make, kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(**({'learning_rate': 0.1} | kwargs))
