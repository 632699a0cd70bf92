"""From a configuration to its parts: schedules, optimizers, factories, what does not fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mem.config import registry
from fedjax_mem.config.build import (
  build,
  build_layers,
  client_optimizer,
  learning_rate,
  load_data,
  server_optimizer,
)
from fedjax_mem.config.load import ClientSection, ServerSection
from fedjax_mem.core import Draws, Layer
from fedjax_mem.optim import SERVER_OPTIMIZERS
from fedjax_mem.runner.loop import run
from fedjax_mem.stages.algorithm import ALGORITHMS
from fedjax_mem.stages.algorithm._accumulates import Accumulates

pytestmark = pytest.mark.usefixtures('undrawn')

# Schedules over rounds, against closed forms.


def test_a_constant_rate_is_a_number():
  assert learning_rate(ClientSection(learning_rate=0.3), 10) == 0.3


@pytest.mark.parametrize(
  ('options', 'rounds', 'closed'),
  [
    ({'learning_rate_schedule': 'exponential', 'decay_rate': 0.9}, 20, lambda r: 0.5 * 0.9**r),
    (
      {'learning_rate_schedule': 'exponential', 'decay_rate': 0.5, 'decay_rounds': 4},
      20,
      lambda r: 0.5 * 0.5 ** (r / 4),
    ),
    ({'learning_rate_schedule': 'linear'}, 20, lambda r: 0.5 * (1 - min(r, 20) / 20)),
    (
      {'learning_rate_schedule': 'linear', 'decay_rounds': 5, 'final_fraction': 0.2},
      20,
      lambda r: 0.5 * (1 - 0.8 * min(r, 5) / 5),
    ),
    (
      {'learning_rate_schedule': 'cosine'},
      20,
      lambda r: 0.5 * (1 + math.cos(math.pi * min(r, 20) / 20)) / 2,
    ),
    (
      {'learning_rate_schedule': 'cosine', 'decay_rounds': 8, 'final_fraction': 0.1},
      20,
      lambda r: 0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(r, 8) / 8)) / 2),
    ),
  ],
)
def test_schedules(options, rounds, closed):
  schedule = learning_rate(ClientSection(learning_rate=0.5, **options), rounds)
  for r in (0, 1, 3, 7, 19, 25):
    assert float(schedule(jnp.int32(r))) == pytest.approx(closed(r), rel=1e-5, abs=1e-7), r


@pytest.mark.slow
def test_the_schedule_reaches_the_clients(make, tmp_path):
  # A rate of (nearly) zero from the second round on: the model stays where the first round left it.
  common = ('client.learning_rate_schedule=exponential', 'client.decay_rate=1e-30')
  one = run(make(*common, 'rounds=1'), tmp_path / 'one')
  two = run(make(*common, 'rounds=3', 'evaluation.every=3'), tmp_path / 'two')
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.abs(a).max() > 0


# Optimizers, against optax twins and closed forms.


def descend(optimizer, gradients, start=1.0):
  params = {'w': jnp.float32(start)}
  state = optimizer.init(params)
  path = []
  for g in gradients:
    updates, state = optimizer.update({'w': jnp.float32(g)}, state, params)
    params = optax.apply_updates(params, updates)
    path.append(float(params['w']))
  return path


@pytest.mark.parametrize(('momentum', 'decay'), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.5, 0.01)])
def test_the_clients_optimizer_has_momentum_and_weight_decay(momentum, decay):
  gradients, rate = [1.0, -2.0, 0.5, 0.0], 0.1
  config = ClientSection(momentum=momentum, weight_decay=decay)
  w, v, expected = 1.0, 0.0, []
  for g in gradients:  # as PyTorch's SGD
    v = momentum * v + g + decay * w
    w -= rate * v
    expected.append(w)
  assert descend(client_optimizer(config)(rate), gradients) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', SERVER_OPTIMIZERS)
def test_every_server_optimizer_builds_with_its_settings(name):
  config = ServerSection(
    optimizer=name, learning_rate=0.5, momentum=0.8, beta1=0.7, beta2=0.6, tau=0.1
  )
  d = [1.0, -0.5, 2.0]
  x, m, v, expected = 1.0, 0.0, 0.1**2, []
  for g in d:  # Reddi et al. (2021), Algorithm 2, where v starts at tau^2
    if name == 'sgd':
      x -= 0.5 * g
    elif name == 'fedavgm':
      m = 0.8 * m + g
      x -= 0.5 * m
    else:
      b1 = 0.0 if name == 'fedadagrad' else 0.7
      m = b1 * m + (1 - b1) * g
      if name == 'fedadagrad':
        v += g * g
      elif name == 'fedadam':
        v = 0.6 * v + 0.4 * g * g
      else:
        v -= 0.4 * g * g * np.sign(v - g * g)
      x -= 0.5 * m / (math.sqrt(v) + 0.1)
    expected.append(x)
  assert descend(server_optimizer(config), d) == pytest.approx(expected, rel=1e-5)


def test_a_users_server_optimizer_gets_the_learning_rate_and_none_of_our_defaults():
  config = ServerSection(optimizer='optax:sgd', learning_rate=0.5)
  assert descend(server_optimizer(config), [1.0, 1.0]) == pytest.approx([0.5, 0.0])


@pytest.mark.slow
def test_any_optax_optimizer_runs_on_clients_and_server(make, tmp_path):
  config = make(
    'client.optimizer=optax:adam', 'client.learning_rate=0.01', 'server.optimizer=optax:yogi',
    'server.learning_rate=0.1', 'rounds=3', 'evaluation.every=3',
  )  # fmt: skip
  result = run(config, tmp_path)
  assert result.metrics[-1]['train_loss'] < result.metrics[0]['train_loss']


# Parts.


@pytest.mark.parametrize(
  ('name', 'option'),
  [('uniform', None), ('poisson', None), ('round_robin', None)],
)
@pytest.mark.parametrize('weighting', ['examples', 'equal', 'capped'])
def test_every_sampler_and_weighting_builds(make, name, option, weighting):
  more = ['weighting.options={cap=50}'] if weighting == 'capped' else []
  parts = build(make(f'selection.name={name}', f'weighting.name={weighting}', *more))
  assert [x.name for x in parts.layers] == ['algorithm', 'select', 'weigh']
  assert parts.layers[1].fact(Draws).expected == pytest.approx(4)
  assert parts.layers.weighs.alike == (weighting == 'equal')
  assert float(parts.layers.weighs.of(np.float32(100))) == {'examples': 100}.get(weighting, 1)


@pytest.mark.parametrize('algorithm', [x for x in ALGORITHMS if x != 'dp_sgd'])
def test_every_algorithm_builds(make, algorithm):
  assert len(build(make(f'algorithm.name={algorithm}')).layers) == 3


@pytest.mark.parametrize('algorithm', ['scaffold', 'feddyn'])
def test_what_averages_over_all_clients_is_told_their_weight(make, algorithm):
  def total(*sets):
    parts = build(make(f'algorithm.name={algorithm}', *sets))
    return parts.layers.algorithm.fact(Accumulates).total, parts.data.counts

  found, counts = total('weighting.name=equal')
  assert found == len(counts)
  assert total('weighting.name=examples')[0] == counts.sum()
  capped = total('weighting.name=capped', 'weighting.options={cap=50}')[0]
  assert capped == pytest.approx(np.minimum(counts / 50, 1).sum(), rel=1e-6)
  assert total('algorithm.options={total_weight=7}')[0] == 7
  config = make(f'algorithm.name={algorithm}')
  with pytest.raises(ValueError, match='total_weight must be given for'):
    build_layers(config, build(config).model, 8)  # without data


def test_stages_stand_where_they_are_asked_to(make, layers):
  (layers / 'places.py').write_text(
    'from fedjax_mem.core import Layer\n'
    "def task(name='t'):\n  return Layer(name)\n"
    "def two(name='m'):\n  return Layer(name), Layer(name + '2')\n"
  )
  parts = build(
    make(
      'stages=[{use="places:two"}, {use="places:task", before_algorithm=true},'
      ' {use="places:two", options={name="x"}}]'
    )
  )
  names = [x.name for x in parts.layers]
  assert names == ['t', 'algorithm', 'select', 'weigh', 'm', 'm2', 'x', 'x2']


@pytest.mark.slow
def test_the_seed_makes_the_parameters_and_the_partition(make):
  mlp = ('model.name=mlp', 'data.partition=dirichlet', 'data.alpha=1')
  a, b, c = (build(make(*mlp, f'seed={seed}')) for seed in (1, 1, 2))
  leaves = [np.concatenate([x.ravel() for x in jax.tree.leaves(p.params)]) for p in (a, b, c)]
  np.testing.assert_array_equal(leaves[0], leaves[1])
  assert (leaves[0] != leaves[2]).mean() > 0.5
  assert (a.data.counts == b.data.counts).all()
  assert (a.data.counts != c.data.counts).any()
  held = load_data(make(*mlp, 'seed=2', 'data.partition_seed=1'))
  assert (held.counts == a.data.counts).all()


# What does not fit.


@pytest.mark.first(6)
@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (['model.name=mpl'], "Did you mean 'mlp'"),
    (['model.options={hiden=[3]}', 'model.name=mlp'], "'hiden'.*Did you mean 'hidden'"),
    (['algorithm.name=fedavgg'], "algorithm.name must be one of .*Did you mean 'fedavg'"),
    (['algorithm.options={epoch=3}'], "algorithm.options must be among .*got 'epoch'"),
    (['algorithm.options={epochs=3}'], 'algorithm.options.epochs must be left out'),
    (['selection.name=unifrom'], "selection.name must be one of .*Did you mean 'uniform'"),
    (['selection.options={capacty=9}', 'selection.name=poisson'], "Did you mean 'capacity'"),
    (['weighting.name=exmples'], "weighting.name must be one of .*Did you mean 'examples'"),
    (['weighting.name=capped'], 'weighting.options.cap must be given'),
    (['weighting.options={cap=1}'], "weighting.options must be among .*got 'cap'"),
    (['weighting.name=capped', 'weighting.options={cap=-1}'], 'cap must be a finite number > 0'),
    (['stages=[{use="nothing"}]'], r'stages\[0\].use must be one of'),
    (['stages=[{use="user_layers:no"}]'], r'stages\[0\].use must name a factory in its module'),
    (['stages=[{use="user_layers:number"}]'], r'stages\[0\].use must be callable, got 3'),
    (['stages=[{use="no.module:f"}]'], r'stages\[0\].use must name a module .*PYTHONPATH'),
    (
      ['stages=[{use="user_layers:counting", options={sise=3}}]'],
      r"stages\[0\].options must be among .*'sise'.*Did you mean 'size'",
    ),
    (
      ['stages=[{use="user_layers:nan_server"}]'],
      r"stages\[0\].options.round must be given for 'nan_server'",
    ),
    (['stages=[{use="user_layers:counting"}, {use="user_layers:counting"}]'], 'distinct'),
    (['client.optimizer="optax:no_such"'], 'client.optimizer must name a factory'),
    (['server.optimizer="no_such:sgd"'], 'server.optimizer must name a module'),
    (['data.options={alfa=1}'], "'alfa'"),
    (['data.partition=dirichlet', 'data.num_clients=2000', 'data.alpha=1'], 'num_clients|clients'),
  ],
)
def test_what_does_not_fit_is_refused_by_name(make, layers, overrides, words):
  with pytest.raises(ValueError, match=words):
    build(make(*overrides))


def test_a_cohort_larger_than_what_the_data_hold_is_refused(make):
  with pytest.raises(ValueError, match='at most the 30 clients of the data, got 31'):
    build(make('data.name=synthetic', 'data.num_clients=', 'selection.cohort_size=31'))


# The registry's call.


def test_call_fills_in_what_a_factory_takes_and_no_more():
  def factory(a, *, b=2):
    return a, b

  assert registry.call('s', factory, {}, a=1, c=3) == (1, 2)
  assert registry.call('s', factory, {'b': 5}, a=1) == (1, 5)

  def open_ended(**options):
    return options

  assert registry.call('s', open_ended, {'x': 1}, a=2) == {'a': 2, 'x': 1}
  with pytest.raises(ValueError, match=r's\.options\.a must be left out'):
    registry.call('s', open_ended, {'a': 1}, a=2)


def test_a_factory_that_gives_no_layer_is_refused(make, layers):
  (layers / 'nothing.py').write_text('def made():\n  return (3,)\n')
  with pytest.raises(ValueError, match='must be a Layer, got 3'):
    build(make('stages=[{use="nothing:made"}]'))
  assert isinstance(build(make()).layers[0], Layer)
