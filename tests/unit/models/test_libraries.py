"""Models of equinox and haiku; those of all libraries beside each other, trained over rounds."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_mem as fm
from fedjax_mem import models
from fedjax_mem.stages import algorithm, select, weigh

WIDTHS = (4, 8, 3)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='b')(nn.tanh(nn.Dense(8, name='a')(x)))


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.a, self.b = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    return self.b(nnx.tanh(self.a(x)))


class Equinox(eqx.Module):
  a: eqx.nn.Linear
  b: eqx.nn.Linear

  def __init__(self, key):
    self.a, self.b = eqx.nn.Linear(4, 8, key=key), eqx.nn.Linear(8, 3, key=key)

  def __call__(self, x):
    return self.b(jnp.tanh(self.a(x)))


def haiku_net(x):
  return hk.Linear(3, name='b')(jnp.tanh(hk.Linear(8, name='a')(x)))


def plain(params, x):
  return jnp.tanh(x @ params[0] + params[1][None]) @ params[2] + params[3][None]


def of_linen(p):
  return p


TWINS = {
  'linen': (lambda: models.from_linen(Linen(), (4,), 3), of_linen),
  'nnx': (lambda: models.from_nnx(Nnx, (4,), 3), of_linen),
  'functions': (
    lambda: models.from_functions(lambda key: flat(start()), plain, (4,), 3),
    lambda p: flat(p),
  ),
  'haiku': (
    lambda: models.from_haiku(hk.transform(haiku_net), (4,), 3),
    lambda p: {x: {'w': p[x]['kernel'], 'b': p[x]['bias']} for x in p},
  ),
  'equinox': (
    lambda: models.from_equinox(Equinox, (4,), 3),
    lambda p: eqx.tree_at(
      lambda m: [m.a.weight, m.a.bias, m.b.weight, m.b.bias],
      eqx.filter(Equinox(jax.random.key(0)), eqx.is_inexact_array),
      [p['a']['kernel'].T, p['a']['bias'], p['b']['kernel'].T, p['b']['bias']],
    ),
  ),
}


def start():
  return TWINS['linen'][0]().init(jax.random.key(5))


def flat(p):
  return [p['a']['kernel'], p['a']['bias'], p['b']['kernel'], p['b']['bias']]


def trained(loss, params, rounds, cohort=2, epochs=1, batch_size=4, clients=None, seed=0):
  rng = np.random.default_rng(0)
  clients = clients or [
    {'x': rng.normal(size=(n, 4)).astype(np.float32), 'y': rng.integers(0, 3, n).astype(np.int32)}
    for n in (5, 9, 4)
  ]
  train = algorithm.fedavg(loss, learning_rate=0.5, batch_size=batch_size, epochs=epochs)
  layers = train, select.round_robin(len(clients), cohort), weigh.by_examples()
  sim = fm.simulate(layers, params, fm.core.stack_clients(clients), seed=seed)
  found, state = [], sim.init(params)
  for _ in range(rounds):
    state, _ = sim.run(state, 1)
    found.append(jax.device_get(state.params))
  return found


@pytest.fixture(scope='module')
def wanted():
  model = TWINS['linen'][0]()
  return trained(model.loss, start(), 5)[-1]


@pytest.mark.slow
@pytest.mark.parametrize('name', [x for x in TWINS if x != 'linen'])
def test_five_rounds_are_those_of_the_linen_twin(name, wanted):
  make, of = TWINS[name]
  model = make()
  first = of(start())
  assert jax.tree.structure(model.init(jax.random.key(0))) == jax.tree.structure(first)
  found = trained(model.loss, first, 5)[-1]
  for a, b, c in zip(*map(jax.tree.leaves, (found, of(wanted), first)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.abs(a - c).max() > 1e-2


class EquinoxDropout(eqx.Module):
  drop: eqx.nn.Dropout
  last: eqx.nn.Linear

  def __init__(self, key):
    self.drop, self.last = eqx.nn.Dropout(0.5), eqx.nn.Linear(64, 1, use_bias=False, key=key)

  def __call__(self, x, *, key=None):
    return self.last(self.drop(x, key=key))


class LinenDropout(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(1, use_bias=False)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxDropout(nnx.Module):
  def __init__(self, rngs):
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(64, 1, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(x))


def haiku_dropout(x, is_training):
  x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
  return hk.Linear(1, with_bias=False)(x)


DROPOUT = {
  'linen': lambda **o: models.from_linen(LinenDropout(), (64,), 1, **o),
  'nnx': lambda **o: models.from_nnx(NnxDropout, (64,), 1, **o),
  'equinox': lambda **o: models.from_equinox(EquinoxDropout, (64,), 1, **o),
  'haiku': lambda **o: models.from_haiku(
    hk.transform(haiku_dropout), (64,), 1, training='is_training', **o
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DROPOUT)
def test_masks_of_dropout_differ_by_client_step_and_round_and_repeat_with_the_seed(name):
  model = DROPOUT[name](task='regression')
  params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
  # The gradient of an output is the input that dropout leaves: 0 or 2, and 1 without dropout.
  loss = lambda p, batch, key: model.apply(p, batch['x'], key)[:, 0]
  clients = [{'x': np.ones((1, 64), np.float32)}] * 2
  values = lambda a: np.unique(np.abs(np.ravel(jax.tree.leaves(a)[0])).round(3)).tolist()
  run = lambda **o: trained(loss, params, **{'batch_size': 1, 'clients': clients, **o})
  by_client = run(rounds=1, cohort=2)[0]
  assert values(by_client) == [0, 0.5, 1]  # equal masks would leave no 0.5
  by_step = run(rounds=1, cohort=1, epochs=2)[0]
  assert values(by_step) == [0, 1, 2]
  # Of one client, whose turn it is in rounds 1 and 3.
  first, second, third = run(rounds=3, cohort=1)
  change = jax.tree.map(lambda a, b: a - b, third, second)
  assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first, change)), strict=True))
  again = run(rounds=1, cohort=2)[0]
  other = run(rounds=1, cohort=2, seed=1)[0]
  same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert same(by_client, again) and not same(by_client, other)
  ones = jax.tree.map(jnp.ones_like, params)
  np.testing.assert_array_equal(model.apply(ones, jnp.ones((2, 64))), np.full((2, 1), 64.0))


class Stateful(eqx.Module):
  norm: eqx.nn.BatchNorm

  def __init__(self, key):
    self.norm = eqx.nn.BatchNorm(4, 'batch', mode='ema')

  def __call__(self, x):
    return x


class Counting(eqx.Module):
  count: jax.Array

  def __init__(self, key):
    self.count = jnp.zeros((), jnp.int32)


def test_what_keeps_state_or_is_no_model_is_refused():
  batch_norm = lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True)
  equinox, haiku = models.from_equinox, models.from_haiku
  plain_net, stateful = hk.transform(haiku_net), hk.transform_with_state(batch_norm)
  for call, words in (
    (lambda: equinox(Stateful, (4,), 3), "keep no state.*got 'Stateful' with 'norm.*GroupNorm"),
    (lambda: equinox(Counting, (4,), 3), "arrays of floats, got 'Counting' with 'count': int32"),
    (lambda: equinox(Equinox(jax.random.key(0)), (4,), 3), 'function key -> equinox'),
    (lambda: equinox(lambda key: 3, (4,), 3), 'got one that makes 3'),
    (lambda: equinox(Equinox, (5,), 3), 'input_shape must be one that the model'),
    (lambda: haiku(stateful, (4,), 3), 'without state'),
    (lambda: haiku(plain_net, (4,), 2), r'must be \[B, 2\] to fit'),
    (lambda: haiku(plain_net, (4,), 3, training=1), 'name of an argument'),
  ):
    with pytest.raises(ValueError, match=words):
      call()
