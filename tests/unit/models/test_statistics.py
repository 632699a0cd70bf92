"""Running statistics of batch normalisation: against a plain loop, under noise, in runs."""

import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_mem as fm
from fedjax_mem import models
from fedjax_mem.config import build
from fedjax_mem.core import keys
from fedjax_mem.engine import split
from fedjax_mem.stages import algorithm, compress, masks, privacy, select, weigh
from fedjax_mem.stages.algorithm import _base

RATE, BATCH, EPOCHS = 0.3, 4, 2
NORM = 'BatchNorm_0'


class Net(nn.Module):
  momentum: float = 0.8

  @nn.compact
  def __call__(self, x, train=False):
    norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)
    return nn.Dense(3)(nn.tanh(norm(nn.Dense(5)(x))))


def net(how='average'):
  """Returns the model of one batch normalisation between two layers."""
  return models.from_linen(Net(), (4,), 3, statistics=how)


def clients(sizes=(5, 9, 4, 1)):
  rng = np.random.default_rng(0)
  return [
    {
      'x': rng.normal(i, 2, size=(n, 4)).astype(np.float32),
      'y': rng.integers(0, 3, n).astype(np.int32),
    }
    for i, n in enumerate(sizes)
  ]


def simulation(train, params, held, *stages, **options):
  layers = train, select.round_robin(len(held), len(held)), weigh.by_examples(), *stages
  return fm.simulate(layers, params, fm.core.stack_clients(held), **options)


@functools.partial(jax.jit, static_argnums=3)
def shuffled(number, client, count, padded):
  """Returns the order of a client's examples in an epoch of the first round, then padding."""
  key = keys.role_key(keys.layer_key(keys.seed_key(0), 0, 'algorithm'), 'client', client)
  key = jax.random.split(jax.random.fold_in(key, number))[0]
  return _base.shuffled(key, types.SimpleNamespace(count=count), padded)


@functools.cache
def stepping(decay, momentum, mu):
  """Returns (first optimizer state, step) of a client's training as in flax's own guide."""
  optimizer = optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(RATE, momentum=momentum or None)
  )

  def step(p, statistics, state, first, x, y):
    def loss(p):
      variables = {'params': p, 'batch_stats': statistics}
      outputs, new = Net().apply(variables, x, train=True, mutable=['batch_stats'])
      pairs = zip(*map(jax.tree.leaves, (p, first)), strict=True)
      near = sum(((a - b) ** 2).sum() for a, b in pairs)
      losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
      return losses.mean() + mu / 2 * near, new['batch_stats']

    grads, statistics = jax.grad(loss, has_aux=True)(p)
    updates, state = optimizer.update(grads, state, p)
    return optax.apply_updates(p, updates), statistics, state

  return jax.jit(optimizer.init), jax.jit(step)


def plain(starts, held, batch=BATCH, decay=0.0, momentum=0.0, mu=0.0):
  """Returns the parameters of each client after a round, without any padding."""
  capacity, (init, step) = max(len(x['y']) for x in held), stepping(decay, momentum, mu)

  def one(client, params, own):
    trained, statistics, state = params['params'], params['batch_stats'], init(params['params'])
    for number in range(EPOCHS):
      rows = np.arange(len(own['y']))  # the order of a single batch does not matter
      if capacity > batch:
        padded = -(-capacity // batch) * batch
        rows = np.asarray(shuffled(number, client, len(rows), padded))[: len(rows)]
      for i in range(0, len(rows), batch):
        x, y = (own[name][rows[i : i + batch]] for name in 'xy')
        trained, statistics, state = step(trained, statistics, state, params['params'], x, y)
    return {'params': trained, 'batch_stats': statistics}

  return [one(i, *x) for i, x in enumerate(zip(starts, held, strict=True))]


def averaged(trees, weights):
  mean = lambda *xs: sum(w * np.float64(x) for w, x in zip(weights, xs, strict=True)) / sum(weights)
  return jax.tree.map(mean, *trees)


def near(found, wanted, **how):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
    np.testing.assert_allclose(a, b, **{'rtol': 1e-5, 'atol': 1e-5, **how})


@pytest.fixture(scope='module')
def start():
  """Parameters in which no statistic is zero, so that a decay of it would show."""
  params = net().init(jax.random.key(0))
  return params | {'batch_stats': jax.tree.map(lambda x: x + 0.5, params['batch_stats'])}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fedprox', 'fedavg'])
def test_a_round_is_that_of_a_plain_loop_without_padding(name, start):
  # Momentum and weight decay must leave the statistics alone, and so must the server's optimizer.
  held, model = clients(), net()
  more = {'mu': 0.1} if name == 'fedprox' else {}
  train = algorithm.ALGORITHMS[name](
    model.loss,
    learning_rate=RATE,
    batch_size=BATCH,
    epochs=EPOCHS,
    optimizer=algorithm.Sgd(0.9, 0.1),
    server_optimizer=optax.sgd(0.5, momentum=0.9),
    **more,
  )
  sim = simulation(train, start, held)
  found = jax.device_get(sim.run(sim.init(start), 1)[0].params)
  trained = plain([start] * len(held), held, decay=0.1, momentum=0.9, **more)
  wanted = averaged(trained, [len(x['y']) for x in held])
  half = jax.tree.map(lambda a, b: (a + b) / 2, start['params'], wanted['params'])
  near(found, wanted | {'params': half})
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, start)
  assert min(jax.tree.leaves(moved['batch_stats'])) > 0.1


def kept(params):
  """Returns what stays with a client."""
  return {'batch_stats': params['batch_stats'], 'params': {NORM: params['params'][NORM]}}


@pytest.mark.slow
def test_what_is_local_is_never_sent_and_each_client_goes_on_with_its_own(start):
  # FedBN: statistics, scale and bias stay; a second round starts from what the first one left.
  held = clients((5, 3))
  train = algorithm.fedavg(net('local').loss, learning_rate=RATE, batch_size=8, epochs=EPOCHS)
  sim = simulation(train, start, held)
  state, _ = sim.run(sim.init(start), 2)
  both, own = start, [kept(start)] * 2
  for _ in range(2):
    begin = [x | {'params': both['params'] | x['params']} for x in own]
    ended = plain(begin, held, batch=8)
    mean, own = averaged(ended, [5, 3]), [kept(x) for x in ended]
    both = start | {'params': mean['params'] | kept(start)['params']}
  near(jax.device_get(state.params), both)
  rows = jax.device_get(state.clients['algorithm'])
  near(rows['own'], jax.tree.map(lambda *xs: np.stack(xs), *own))
  assert rows['rounds'].tolist() == [2, 2]
  ((_, _, fact),) = sim.setting.layers.having(fm.core.Personal)
  near(kept(fact.mean(state.params, rows)), averaged(own, [1, 1]))
  near(kept(fact.of(state.params, rows, 1)), own[1])
  sent = sim.setting.specs['weigh'].update
  assert jax.tree.leaves(sent['batch_stats']) == [] and set(sent['params']) == {
    'Dense_0',
    'Dense_1',
  }


MODES = (
  {'mode': 'vmap', 'devices': 1},
  {'mode': 'loop', 'devices': 1},
  {'mode': 'chunk', 'chunk': 1, 'devices': 2},
)


@pytest.mark.slow
def test_modes_agree_and_noise_makes_no_variance_negative(start):
  # The statistics are part of what is clipped and noised, and one client has a single example.
  train = algorithm.fedavg(net().loss, learning_rate=RATE, batch_size=BATCH)
  noise = privacy.central(l2_clip_norm=0.5, noise_multiplier=8.0)
  layers = train, select.uniform(4, 4), weigh.equal(divisor=4), noise
  found = []
  for how in MODES:
    sim = fm.simulate(
      layers,
      start,
      fm.core.stack_clients(clients()),
      execution=fm.Execution(**how),
      expect_privacy=True,
      noise_seed=1,
    )
    state, before, stayed = sim.init(start), start, []
    for _ in range(2):
      state, _ = sim.run(state, 1)
      old, now = (x['batch_stats'][NORM]['var'] for x in (before, state.params))
      stayed += (now == old).tolist()
      assert (now > 0).all()
      before = jax.device_get(state.params)
    # The noise is far beyond any variance: those that it would make negative stay.
    assert any(stayed) and not all(stayed)
    found.append(before)
  for other in found[1:]:
    near(other, found[0])
  assert all(np.abs(x).min() > 0 for x in jax.tree.leaves(found[0]['params']))


@pytest.mark.slow
def test_modes_agree_on_what_clients_keep(start):
  train = algorithm.fedavg(net('local').loss, learning_rate=RATE, batch_size=BATCH)
  found = []
  for how in MODES:
    sim = simulation(train, start, clients(), execution=fm.Execution(**how))
    state, _ = sim.run(sim.init(start), 2)
    found.append(jax.device_get((state.params, state.clients)))
  for other in found[1:]:
    near(other, found[0])


FACTORY = """
import flax.linen as nn
import fedjax_mem as fm


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(16)(x.reshape(x.shape[0], -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
    return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))


def net(input_shape, num_classes, statistics='refuse'):
  return fm.models.from_linen(Net(), input_shape, num_classes, statistics=statistics)


def unaware(input_shape, num_classes):
  return fm.models.build('mlp', input_shape, num_classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch, make):
  """Returns the tiny experiment with a model of a user's, and overrides."""
  (tmp_path / 'user_norm.py').write_text(FACTORY)
  monkeypatch.syspath_prepend(str(tmp_path))
  return lambda *more, net='net': make(f'model.name=user_norm:{net}', 'rounds=2', *more)


@pytest.mark.slow
def test_a_run_counts_the_statistics_and_scores_by_them(own, tmp_path, undrawn):
  config = own('model.statistics=average', 'rounds=4', 'client.learning_rate=0.5')
  result = fm.run(config, tmp_path / 'runs', quiet=True)
  loaded = fm.load(result.folder)
  assert result.metrics[-1]['test_accuracy'] > 0.6
  assert result.metrics[-1]['bytes_up'] == 4 * compress.dense_size(loaded.params, {})
  digits = fm.data.load('digits', num_clients=12)
  scores = jax.jit(loaded.model.metrics)(loaded.params, digits.preprocess(digits.test))
  found = float(scores['accuracy'].mean())
  assert found == pytest.approx(result.metrics[-1]['test_accuracy'], abs=1e-6)


@pytest.mark.slow
def test_a_run_with_local_statistics_scores_each_client_by_its_own(
  own, tmp_path, undrawn, state_of
):
  config = own(
    'model.statistics=local',
    'client.learning_rate=0.5',
    'data.partition=dirichlet',
    'data.alpha=0.3',
    'evaluation.clients=0.2',
    'evaluation.batch_size=7',
    'selection.cohort_size=9',
    'rounds=1',
  )
  result = fm.run(config, tmp_path / 'runs', quiet=True)
  record, loaded, parts = result.metrics[0], fm.load(result.folder), build.build(config)
  flat = state_of(result.folder)
  table = lambda *path: np.asarray(flat['/'.join(('clients', 'algorithm', *path))])
  rows = jax.tree_util.tree_map_with_path(
    lambda path, x: table('own', *(part.key for part in path)), kept(loaded.params)
  )
  took = table('rounds') > 0
  assert took.sum() == 9  # the others are scored by the mean
  near(kept(loaded.params), jax.tree.map(lambda x: x[took].mean(0), rows))
  held = parts.data.held
  batch = {name: x[held.index] for name, x in parts.data.arrays.items()}
  score = jax.jit(lambda p: loaded.model.metrics(p, parts.data.preprocess(batch))['accuracy'])
  right = []
  for i in np.flatnonzero(np.diff(held.offsets)):
    mine = jax.tree.map(lambda x, i=i: x[i], rows) if took[i] else kept(loaded.params)
    scores = score(mine | {'params': loaded.params['params'] | mine['params']})
    right.append(float(scores[held.offsets[i] : held.offsets[i + 1]].mean()))
  assert record['client_accuracy_mean'] == pytest.approx(np.mean(right), abs=1e-6)
  sent = loaded.params['params'].copy()
  sent.pop(NORM)
  sent = {'params': sent, 'batch_stats': {}}
  assert record['bytes_up'] == record['bytes_down'] == 9 * compress.dense_size(sent, {})
  warnings = json.loads((result.folder / 'manifest.json').read_text())['warnings']
  assert any('have the mean of those of the clients' in x for x in warnings)


@pytest.mark.parametrize(
  'net, words, match',
  [
    ('net', [], "model: statistics must be 'average' or 'local'"),
    ('unaware', ['model.statistics=average'], "model.statistics must be .*'refuse', got 'average'"),
    (
      'net',
      ['model.statistics=own'],
      "model.statistics must be one of 'refuse', 'average', 'local'",
    ),
    ('net', ['model.statistics=average', 'algorithm.name=scaffold'], 'model.statistics.*fedprox'),
    ('net', ['model.statistics=average', 'algorithm.name=fedsgd'], 'model.statistics.*fedprox'),
  ],
)
def test_what_a_configuration_may_not_ask(own, net, words, match):
  with pytest.raises(ValueError, match=match):
    build.build(own(*words, net=net))


def test_what_no_plan_may_hold(start, own):
  # A claim would not cover the mean that is scored; real machines do not show it; a sampler by
  # losses has no loss of the server's parameters.
  train = algorithm.fedavg(net('local').loss, learning_rate=RATE, batch_size=BATCH)
  layers = train, select.uniform(4, 4), weigh.equal(divisor=4)
  with pytest.raises(fm.IncompatibleStages, match='no noise covers'):
    noise = privacy.central(l2_clip_norm=0.5, noise_multiplier=8.0)
    fm.simulate((*layers, noise), start, fm.core.stack_clients(clients()))
  with pytest.raises(fm.IncompatibleStages, match='no mask hides'):
    hidden = masks.integers(4.0, clients=4, bits=14), masks.mask(clients=4, bits=14)
    fm.simulate((*layers, *hidden), start, fm.core.stack_clients(clients()))
  with pytest.raises(fm.IncompatibleStages, match='processes of their own'):
    split.client_layers(fm.compose(*layers))
  with pytest.raises(ValueError, match="samplers by losses, got 'local'"):
    net('local').loss(start, clients()[0])


@pytest.mark.slow
def test_an_own_algorithm_that_takes_gradients_of_the_loss_is_refused(start):
  # It would train by the running statistics, and move them by their gradients.
  loss, batch = net().loss, clients()[0]
  assert np.isfinite(loss(start, batch)).all()
  with pytest.raises(ValueError, match=r'loss.trained'):
    jax.grad(lambda params: loss(params, batch, None).sum())(start)


@pytest.mark.slow
def test_a_simulation_gives_the_mean_of_what_clients_keep(start):
  train = algorithm.fedavg(net('local').loss, learning_rate=RATE, batch_size=8)
  sim = simulation(train, start, clients((5, 3)))
  state, _ = sim.run(sim.init(start), 1)
  found, rows = jax.device_get(sim.scored(state)), jax.device_get(state.clients['algorithm']['own'])
  mean = rows['batch_stats'][NORM]['mean']
  near(found['batch_stats'][NORM]['mean'], mean.mean(0))
  near(jax.device_get(state.params['batch_stats']), jax.device_get(start['batch_stats']))


class Odd(nn.Module):
  how: str

  @nn.compact
  def __call__(self, x, train=False):
    batch = nn.BatchNorm(use_running_average=(not train) if self.how != 'switch' else False)
    if self.how == 'rows':
      return nn.Dense(3)(batch(x.reshape(-1, 2)).reshape(-1, 4))
    if self.how == 'turned':
      return nn.Dense(3)(batch(x.T).T)
    if self.how == 'other':
      self.variable('batch_stats', 'seen', lambda: jnp.zeros(()))
    return nn.Dense(3)(batch(x))


@pytest.mark.parametrize(
  'how, match',
  [
    ('rows', r'rows \[B, ...\] of a batch, got .* of B = 7919'),
    ('turned', r'rows \[B, ...\] of a batch'),
    ('switch', 'use_running_average=not train'),
    ('other', "no statistics but those of nn.BatchNorm, got 'seen'"),
  ],
)
def test_statistics_that_padding_would_change_are_refused(how, match):
  with pytest.raises(ValueError, match=match):
    models.from_linen(Odd(how), (4,), 3, statistics='average')
