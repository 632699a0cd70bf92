"""DP-SGD inside the client: plain SGD without clip and noise, bounds by example, its batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import tiny
from scipy import stats

from fedjax_mem.account import LocalLedger
from fedjax_mem.core import (
  Context,
  Examples,
  Noises,
  Task,
  compose,
  keys,
  scalar_member,
  stack_clients,
)
from fedjax_mem.engine import simulate
from fedjax_mem.models import char_lstm, cnn, lenet, logistic, mlp, resnet_gn
from fedjax_mem.stages.algorithm import dp_sgd
from fedjax_mem.stages.algorithm.dp_sgd import Steps, batch_rows, poisson_batch
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

C = 0.7
OPTIONS = dict(
  learning_rate=0.3, batch_size=5, steps=3, rate=0.5, l2_clip_norm=C, noise_multiplier=0.0
)


def make(loss=tiny.loss, **options):
  return dp_sgd(loss, **(OPTIONS | options))


def examples(client, count=None, x=None):
  """Returns the view of one client's examples, where `x` replaces those of example 0."""
  pop = stack_clients([tiny.DATA[client]])
  arrays = dict(pop.arrays)
  if x is not None:
    arrays['x'] = arrays['x'].at[0].set(x)
  n = int(pop.count[0])
  count = n if count is None else count
  return Examples(arrays, pop.index, jnp.int32(0), jnp.int32(count), jnp.int32(n), n)


def train(layer, data, params=None, key=None):
  """Returns the update of a client, flat, and the metrics."""
  params = tiny.initial() if params is None else params
  key = jax.random.key(7) if key is None else key
  fields = dict.fromkeys(Context._fields)
  ctx = Context(**(fields | {'key': key, 'round': jnp.int32(0), 'client': scalar_member(0)}))
  client = jax.jit(lambda p, k: layer.client.apply(ctx._replace(key=k), Task(p, data), ()))
  message, _, metrics = client(params, key)
  return tiny.vec(message.update), metrics


@functools.cache
def batches(seed, n, rate, rows, steps):
  """Returns (positions, mask) of each step, as the layer draws them from its client's key."""
  data = examples(4)
  assert data.capacity == n
  drawn = []
  for step in range(steps):
    key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)[0]
    positions, mask, _ = poisson_batch(key, data, rate, rows)
    drawn.append((np.asarray(positions), np.asarray(mask)))
  return drawn


@pytest.mark.slow
def test_without_clip_and_noise_it_is_plain_sgd_on_the_same_batches():
  data, n = examples(4), 7
  got, metrics = train(make(l2_clip_norm=1e30, steps=4, batch_size=3), data)
  params, losses, used = tiny.initial(), 0.0, 0
  for positions, mask in batches(7, n, 0.5, n, 4):
    batch = data.take(jnp.asarray(positions[mask]))
    total = lambda p, batch=batch: tiny.loss(p, batch).sum()
    losses, used = losses + float(total(params)), used + mask.sum()
    grads = jax.grad(total)(params)
    params = jax.tree.map(lambda p, g: p - 0.3 * g / 3, params, grads)
  np.testing.assert_allclose(got, tiny.vec(tiny.initial()) - tiny.vec(params), atol=1e-6)
  assert 0 < used < 4 * n
  assert float(metrics['train_loss'].total) == pytest.approx(losses, rel=1e-5)
  assert float(metrics['train_loss'].count) == used
  assert float(metrics['clipped'].total) == 0


@pytest.mark.slow
def test_each_gradient_is_clipped_as_a_whole_in_a_numpy_twin():
  data = examples(4)
  got, metrics = train(make(steps=1, rate=1.0, learning_rate=1.0), data)
  total, clipped = 0, 0
  for i in range(7):
    grad = jax.grad(lambda p, i=i: tiny.loss(p, data.take(jnp.array([i])))[0])(tiny.initial())
    norm = np.linalg.norm(tiny.vec(grad))
    total = total + tiny.vec(grad) * min(1, C / norm)
    clipped += norm > C
  np.testing.assert_allclose(got, total / 5, atol=1e-6)
  assert 0 < clipped < 7 or clipped == 7
  assert float(metrics['clipped'].total) == clipped


@pytest.mark.slow
@pytest.mark.parametrize('x', [0.0, 1e4, -1e15, 1e37, np.nan, np.inf])
def test_one_example_moves_a_step_by_at_most_its_bound(x):
  layer = make(steps=1, rate=1.0, learning_rate=1.0)
  without = train(layer, examples(4, x=0.0))[0]
  got, metrics = train(layer, examples(4, x=x))
  assert np.isfinite(got).all()
  assert np.linalg.norm(got - without) <= 2 * C / 5 * (1 + 1e-5)
  assert int(metrics['not_finite_examples'].value) == (not np.isfinite(x))


@pytest.mark.slow
def test_an_example_less_moves_a_step_by_at_most_the_bound():
  layer = make(steps=1, rate=1.0, learning_rate=1.0)
  whole, less = (train(layer, examples(4, count=n))[0] for n in (7, 6))
  assert 0 < np.linalg.norm(whole - less) <= C / 5 * (1 + 1e-5)


MODELS = {
  'mlp': lambda: mlp.mlp((30,), 10, hidden=(20,)),
  'logistic': lambda: logistic.logistic((30,), 10),
  'cnn': lambda: cnn.cnn((10, 10, 1), 10, dropout=True),
  'cnn, group': lambda: cnn.cnn((10, 10, 1), 10, norm='group'),
  'lenet': lambda: lenet.lenet((16, 16, 1), 10),
  'resnet_gn': lambda: resnet_gn.resnet_gn((8, 8, 1), 10, blocks=(1,), width=8),
  'char_lstm': lambda: char_lstm.char_lstm((9,), 30, width=16),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_clipped_sums_of_a_model_are_those_of_gradients_that_are_formed(name):
  model, n = MODELS[name](), 7
  rng = np.random.default_rng(0)
  y = rng.integers(1, 10, (n, 9) if name == 'char_lstm' else n)
  x = rng.integers(0, 30, (n, 9)) if name == 'char_lstm' else rng.random((n, *model.input_shape))
  batch = {'x': jnp.asarray(x, jnp.float32 if name != 'char_lstm' else int), 'y': jnp.asarray(y)}
  params = model.init(jax.random.key(1))
  data = Examples(batch, jnp.arange(n), jnp.int32(0), jnp.int32(n), jnp.int32(n), n)
  bound = 0.3  # less than the norms of each model
  layer = make(model.loss, steps=1, rate=1.0, learning_rate=1.0, l2_clip_norm=bound)
  got, _ = train(layer, data, params)
  drop = jax.random.split(jax.random.fold_in(jax.random.key(7), 0), 3)[1]
  keys_ = jax.vmap(lambda i: jax.random.fold_in(drop, i))(jnp.arange(n))
  one = lambda p, e, key: model.loss(p, jax.tree.map(lambda x: x[None], e), key)[0]
  grads = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(params, batch, keys_)
  rows = np.concatenate([np.float64(x).reshape(n, -1) for x in jax.tree.leaves(grads)], 1)
  norms = np.linalg.norm(rows, axis=1)
  wanted = (rows * np.minimum(1, bound / norms)[:, None]).sum(0) / 5
  # The update is a difference of parameters, which are rounded: it adds u of their norm.
  rounded = 2.0**-24 * np.linalg.norm(tiny.vec(params))
  assert norms.min() > bound
  assert np.linalg.norm(got - wanted) < 1.2e-6 * np.linalg.norm(wanted) + rounded


def temporary(f, *args):
  """Returns the bytes that a compiled function needs beside its arguments and results."""
  return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_batch_of_256_needs_less_than_twice_the_memory_of_plain_sgd():
  model, n = cnn.cnn((28, 28, 1), 62), 256
  batch = {'x': jnp.zeros((n, 28, 28, 1)), 'y': jnp.zeros(n, jnp.int32)}
  params = model.init(jax.random.key(1))
  data = Examples(batch, jnp.arange(n), jnp.int32(0), jnp.int32(n), jnp.int32(n), n)
  steps = Steps(
    model.loss, batch_size=n, steps=1, rate=1.0, l2_clip_norm=1.0, noise_multiplier=1.0,
    capacity=None, microbatch=None,
  )  # fmt: skip
  private = temporary(
    lambda p: steps.run(jax.random.key(0), Task(p, data), optax.sgd(0.1))[0], params
  )
  mean = lambda p: model.loss(p, batch).mean()
  plain = temporary(lambda p: jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(mean)(p)), params)
  assert private < 2 * plain


@pytest.mark.slow
def test_the_microbatch_changes_neither_gradients_nor_noise():
  data = examples(4)
  one, some, all_ = (train(make(microbatch=m, noise_multiplier=0.5), data)[0] for m in (1, 3, 50))
  np.testing.assert_allclose(one, some, atol=1e-6)
  np.testing.assert_allclose(one, all_, atol=1e-6)


def flat_loss(params, batch, key=None):
  """Returns zero losses: the gradient is zero and what moves is noise."""
  del key
  return 0.0 * batch['x'][:, 0] * params['w'].sum()


def noise_of(steps=1, key=7, z=0.8, rate=0.5):
  params = {'w': jnp.zeros(20_000)}
  layer = make(flat_loss, steps=steps, noise_multiplier=z, learning_rate=1.0, rate=rate)
  return train(layer, examples(4), params, jax.random.key(key))[0]


@pytest.mark.slow
def test_the_noise_is_on_the_sum_and_has_its_scale_in_every_step():
  one, three, other = noise_of(), noise_of(3), noise_of(key=8)
  law = lambda steps, wrong=1.0: stats.norm(scale=wrong * 0.8 * C / 5 * np.sqrt(steps)).cdf
  for got, steps in ((one, 1), (three, 3)):
    assert stats.kstest(got, law(steps)).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
      assert stats.kstest(got, law(steps, wrong)).pvalue < 1e-12
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
  rest = three - one  # the noise of the second and third step is not that of the first
  assert abs(np.corrcoef(one, rest)[0, 1]) < 0.04
  assert np.std(noise_of(rate=1e-9)) == pytest.approx(0.8 * C / 5, rel=0.05)  # an empty batch


@functools.cache
def drawn(rate, rows, n=40, count=30, draws=4000):
  data = Examples(
    {'x': jnp.zeros((n, 1))}, jnp.arange(n), jnp.int32(0), jnp.int32(count), jnp.int32(n), n
  )
  keys_ = jax.random.split(jax.random.key(1), draws)
  positions, mask, cut = jax.jit(jax.vmap(lambda k: poisson_batch(k, data, rate, rows)))(keys_)
  taken = np.zeros((draws, n), bool)
  np.put_along_axis(taken, np.asarray(positions), np.asarray(mask), 1)
  return taken, np.asarray(cut)


def test_batches_are_poisson_and_neither_shuffled_nor_of_fixed_size():
  taken, cut = drawn(0.3, 40)
  assert not cut.any() and not taken[:, 30:].any()
  sizes = taken.sum(1)
  law = stats.binom(30, 0.3)
  seen = np.array([(sizes == k).sum() for k in range(4, 15)])
  seen = np.append(seen, len(sizes) - seen.sum())
  mass = law.pmf(np.arange(4, 15))
  assert stats.chisquare(seen, np.append(mass, 1 - mass.sum()) * len(sizes)).pvalue > 1e-3
  assert np.var(sizes) == pytest.approx(30 * 0.3 * 0.7, rel=0.1)
  corr = np.corrcoef(taken[:, :30].T) - np.eye(30)
  assert np.abs(corr).max() < 5 / np.sqrt(len(taken))


def test_a_batch_that_overflows_is_cut_uniformly_and_counted():
  taken, cut = drawn(0.3, 8)
  law = stats.binom(30, 0.3)
  assert taken.sum(1).max() == 8
  assert cut.mean() == pytest.approx(law.sf(8), abs=0.03)
  counts = taken[:, :30].sum(0)
  assert stats.chisquare(counts).pvalue > 1e-3


def test_rows_are_enough_for_the_largest_client():
  assert batch_rows(0.1, 1000, None) < 200
  assert stats.binom(1000, 0.1).sf(batch_rows(0.1, 1000, None)) <= 1e-14
  assert batch_rows(1.0, 60, None) == 60 and batch_rows(0.5, 60, 1000) == 60
  sampling = make(noise_multiplier=1.0, capacity=12).fact(Noises).draws(40)
  assert (sampling.scheme, sampling.population, sampling.expected, sampling.capacity) == (
    'poisson',
    40,
    20.0,
    12,
  )


def test_the_ledger_takes_what_the_layer_carries():
  noise = make(noise_multiplier=2.0).fact(Noises)
  assert (noise.unit, noise.trust, noise.steps) == ('example', 'local', 3)
  plan = lambda steps: LocalLedger.plan(
    'algorithm',
    noise.mechanism,
    num_clients=10,
    rounds=4,
    delta=1e-5,
    steps=steps,
    batches=noise.draws(60),
  )
  ledger = plan(noise.steps)
  assert 0 < ledger.entry.epsilon[0] < ledger.entry.epsilon[-1] < np.inf
  assert plan(1).entry.epsilon[-1] < ledger.entry.epsilon[-1]
  assert make().fact(Noises) is None


def round_of(layer, mode='vmap'):
  return tiny.build(compose(layer, round_robin(tiny.N, tiny.C), equal()), mode)


@pytest.mark.slow
def test_clients_and_rounds_draw_batches_and_noise_of_their_own():
  pop = stack_clients([{'x': np.ones((4, 2), np.float32)}] * 3)
  layers = compose(
    make(flat_loss, steps=1, noise_multiplier=1.0, learning_rate=1.0), round_robin(3, 1), equal()
  )
  sim = simulate(layers, {'w': jnp.zeros(5000)}, pop, seed=1)
  moves, before = [], np.zeros(5000)
  state = sim.init({'w': jnp.zeros(5000)})
  for _ in range(4):  # client 0, 1, 2, 0
    state, _ = sim.run(state, 1)
    after = tiny.vec(tiny.host(state.params))
    moves.append(after - before)
    before = after
  assert np.abs(np.corrcoef(moves) - np.eye(4)).max() < 0.08


@pytest.mark.devices(2)
@pytest.mark.slow
def test_every_execution_gives_the_same():
  layer = make(noise_multiplier=0.5, optimizer=functools.partial(optax.sgd, momentum=0.9))
  loop, chunks = (
    tiny.execute(round_of(layer, mode), 2)[0] for mode in ('loop', 'chunk on devices')
  )
  tiny.assert_close(loop, chunks)


@pytest.mark.slow
def test_the_noise_of_a_round_is_from_the_clients_key():
  layer = make(flat_loss, steps=1, noise_multiplier=1.0, learning_rate=1.0)
  pop = stack_clients([{'x': np.ones((4, 2), np.float32)}])
  params = {'w': jnp.zeros(50)}
  sim = simulate(compose(layer, round_robin(1, 1), equal()), params, pop, seed=9, noise_seed=9)
  state, _ = sim.run(sim.init(params), 1)
  key = keys.role_key(keys.layer_key(keys.seed_key(9), 0, 'algorithm'), 'client', 0)
  data = Examples(pop.arrays, pop.index, pop.start[0], pop.count[0], pop.count[0], 4)
  expected, _ = train(layer, data, params, key)
  np.testing.assert_allclose(tiny.vec(state.params), -expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  'option',
  [
    {'rate': 0.0},
    {'rate': 1e-12},
    {'rate': 1.5},
    {'steps': 0},
    {'batch_size': 0},
    {'capacity': 0},
    {'microbatch': 0},
    {'l2_clip_norm': float('inf')},
    {'l2_clip_norm': 1e31},
    {'noise_multiplier': -1.0},
    {'learning_rate': 0.0},
    {'optimizer': 3},
  ],
)
def test_bad_options_are_refused_by_name(option):
  with pytest.raises(ValueError, match=f'{next(iter(option))} must be'):
    make(**option)
  with pytest.raises(ValueError, match='loss must be'):
    make(3)
