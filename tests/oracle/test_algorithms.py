"""The algorithms against NumPy loops in float64, and in the cases where one is another."""

import functools
import inspect

import jax
import numpy as np
import optax
import pytest
from reference import algorithms as twin
from reference import tiny, twins

from fedjax_mem.core import IncompatibleStages, compose
from fedjax_mem.optim import fedavgm
from fedjax_mem.stages.algorithm import ALGORITHMS, Sgd, fednova, scaffold
from fedjax_mem.stages.attack import sign_flip
from fedjax_mem.stages.privacy import central
from fedjax_mem.stages.select import importance, poisson, round_robin, uniform
from fedjax_mem.stages.weigh import by_examples, capped, equal

ROUNDS = 5
TOTAL = {'examples': float(sum(tiny.COUNTS)), 'equal': float(tiny.N)}
WEIGH = {'examples': by_examples, 'equal': equal}
CASES = {
  'fedprox': ('fedprox', {'mu': 0.5}),
  'fedprox, partial work': ('fedprox', {'mu': 0.5, 'partial_work': 0.5}),
  'scaffold, option 1': ('scaffold', {'option': 1}),
  'scaffold, option 2': ('scaffold', {'option': 2}),
  'fednova': ('fednova', {}),
  'fednova, proximal': ('fednova', {'mu': 0.5}),
  'feddyn': ('feddyn', {'alpha': 0.5}),
  'mime': ('mime', {}),
  'mime_lite': ('mime_lite', {}),
}
ACCUMULATE = ('scaffold', 'feddyn')


def make(name, by='examples', momentum=0.9, decay=0.01, **options):
  """Returns the layer of an algorithm with the settings of the twins."""
  given = {'learning_rate': 0.1, 'batch_size': 4, 'epochs': 2, 'optimizer': Sgd(momentum, decay)}
  if name in ACCUMULATE:
    given['total_weight'] = TOTAL[by]
  return ALGORITHMS[name](tiny.loss, **(given | options))


def played(made, rounds=ROUNDS, by='examples', draw=None, mode='vmap', **kwargs):
  """Returns the state after some rounds."""
  layers = compose(made, draw or tiny.rota(), WEIGH[by]() if isinstance(by, str) else by)
  return tiny.execute(tiny.build(layers, mode, **kwargs), rounds)[0]


def all_of_them():
  return round_robin(tiny.N, tiny.N)


def rows(tree):
  """Returns client states as [N, D], in the order of the twins' vectors."""
  return np.concatenate([x.reshape(tiny.N, -1) for x in jax.tree.leaves(tree)], 1)


# Five rounds with momentum and weight decay, ragged clients, some of whom drop out.


@functools.cache
def built(case, by='examples'):
  """Returns the simulation of a case, compiled once."""
  name, options = CASES[case]
  return tiny.build(compose(make(name, by, **options), tiny.rota(), WEIGH[by]()))


# Weights by examples, and for what the server keeps of all clients equal ones, too.
PAIRS = [
  (case, by) for case in CASES for by in WEIGH if by == 'examples' or CASES[case][0] in ACCUMULATE
]


@pytest.mark.slow
@pytest.mark.parametrize(('case', 'by'), PAIRS)
def test_it_is_its_numpy_twin(case, by):
  name, options = CASES[case]
  state, _ = tiny.execute(built(case, by), ROUNDS)
  params, own, server = getattr(twin, name)(ROUNDS, by=by, **options)
  assert np.abs(params - twins.START).max() > 0.05
  np.testing.assert_allclose(tiny.vec(state.params), params, rtol=0, atol=1e-5)
  if own is not None:
    np.testing.assert_allclose(rows(state.clients['algorithm']), own, rtol=0, atol=1e-5)
  for key, value in server.items():
    kept = tiny.vec(state.servers['algorithm'][key])
    np.testing.assert_allclose(kept, value, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(case):
  sim = built(case)
  half, _ = tiny.execute(sim, 2)
  again, _ = tiny.execute(sim, ROUNDS - 2, state=jax.device_put(half))
  tiny.assert_same_bits(again, tiny.execute(sim, ROUNDS)[0])


@pytest.mark.slow
def test_the_server_may_have_an_optimizer_of_its_own():
  """Momentum on the server goes on top of what the algorithm makes of the average."""
  made = make('feddyn', 'equal', server_optimizer=fedavgm(0.7, momentum=0.5), alpha=0.5)
  state = played(made, 2, 'equal', all_of_them())
  one = twin.feddyn(1, twin.everyone, 0.5, 'equal')[0]
  first = 0.7 * (twins.START - one)
  v = twins.START - first
  alone = played(make('feddyn', 'equal', alpha=0.5), 1, 'equal', all_of_them())
  np.testing.assert_allclose(tiny.vec(alone.params), one, rtol=0, atol=1e-5)
  two = played(made, 1, 'equal', all_of_them())
  np.testing.assert_allclose(tiny.vec(two.params), v, rtol=0, atol=1e-5)
  assert np.abs(tiny.vec(state.params) - v).max() > 1e-3


# Where one algorithm is another.


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'options'), [('fedprox', {'mu': 0.0}), ('mime_lite', {'beta': 0.0})]
)
def test_without_its_correction_it_is_fedavg(name, options):
  a, b = played(make(name, **options)), played(make('fedavg'))
  np.testing.assert_allclose(tiny.vec(a.params), tiny.vec(b.params), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('mu', (0.0, 0.5))
def test_fednova_with_as_many_steps_everywhere_is_fedprox(mu):
  pop = tiny.population([{k: x[:3] for k, x in d.items()} for d in tiny.DATA])
  a = played(make('fednova', mu=mu), pop=pop)
  b = played(make('fedprox', mu=mu), pop=pop)
  np.testing.assert_allclose(tiny.vec(a.params), tiny.vec(b.params), rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize('option', (1, 2))
def test_scaffold_of_everyone_with_one_full_step_is_fedavg(option):
  """The controls are then the gradients, and c - c_i cancel in the mean."""
  how = {'batch_size': 9, 'epochs': 1, 'momentum': 0.0, 'decay': 0.0}
  a = played(make('scaffold', option=option, **how), draw=all_of_them())
  b = played(make('fedavg', **how), draw=all_of_them())
  np.testing.assert_allclose(tiny.vec(a.params), tiny.vec(b.params), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_the_first_round_of_feddyn_is_fedprox_and_the_servers_drift():
  a = played(make('feddyn', 'equal', alpha=0.5), 1, 'equal', all_of_them())
  b = played(make('fedprox', mu=0.5), 1, 'equal', all_of_them())
  twice = twins.START + 2 * (tiny.vec(b.params) - twins.START)
  np.testing.assert_allclose(tiny.vec(a.params), twice, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_mime_of_one_full_step_without_momentum_is_gradient_descent_a_round_late():
  how = {'batch_size': 9, 'epochs': 1, 'momentum': 0.0, 'decay': 0.0, 'beta': 0.0}
  a = played(make('mime', **how), draw=all_of_them())
  v, last = twins.START, 0.0
  for _ in range(ROUNDS):
    v, last = v - 0.1 * last, twin.average([twins.of(i, v) for i in range(tiny.N)], range(tiny.N))
  np.testing.assert_allclose(tiny.vec(a.params), v, rtol=0, atol=2e-6)


# What the formulas of the papers say.


@pytest.mark.parametrize('steps', (0, 1, 7, 940))
@pytest.mark.parametrize('rho', (0.0, 0.9))
def test_the_length_of_a_is_the_closed_form(steps, rho):
  from fedjax_mem.stages.algorithm.fednova import _length

  closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
  assert float(_length(np.int32(steps), rho, np.float32(0))) == pytest.approx(closed, rel=2e-6)
  pull = 0.01  # eta mu, without momentum
  closed = (1 - (1 - pull) ** steps) / pull
  found = float(_length(np.int32(steps), 0.0, np.float32(pull)))
  assert found == pytest.approx(closed, rel=1e-5)


@pytest.mark.parametrize('steps', (3, 40))
@pytest.mark.parametrize(('rho', 'pull'), [(0.9, 0.1), (0.9, 0.01), (0.0, 1.5), (0.0, 2.0)])
def test_the_length_of_a_sums_absolute_values(steps, rho, pull):
  from fedjax_mem.stages.algorithm.fednova import _length

  found = float(_length(np.int32(steps), rho, np.float32(pull)))
  assert found == pytest.approx(twin.lengths(steps, rho, pull), rel=2e-6)


def test_passes_are_uniform_for_the_share_of_stragglers():
  from fedjax_mem.stages.algorithm.fedprox import _passes

  keys = jax.random.split(jax.random.key(0), 8000)
  counts = np.bincount(np.asarray(jax.vmap(lambda k: _passes(k, 4, 0.5))(keys)), minlength=5)
  expected = 8000 * np.array([0, 1, 1, 1, 5]) / 8  # half make all 4, and of the others a quarter
  assert counts[0] == 0
  assert ((counts[1:] - expected[1:]) ** 2 / expected[1:]).sum() < 16.3  # 3 degrees: p = 0.001


# What a server keeps of all clients.

FIVES = float(np.minimum(np.array(tiny.COUNTS) / 5, 1).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
  ('weigh', 'total', 'weights'),
  [
    (equal(4.0), float(tiny.N), np.ones(tiny.N)),
    (by_examples(20.0), TOTAL['examples'], np.array(tiny.COUNTS)),
    (capped(5), FIVES, np.minimum(np.array(tiny.COUNTS) / 5, 1)),
  ],
  ids=['equal, fixed', 'examples, fixed', 'capped'],
)
def test_the_servers_control_is_the_mean_of_all_however_clients_are_weighed(weigh, total, weights):
  state = played(make('scaffold', total_weight=total), by=weigh)
  own = rows(state.clients['algorithm']).astype(np.float64)
  assert np.abs(own).max() > 0.1 and (own == 0).all(1).sum() == 0
  control = tiny.vec(state.servers['algorithm']['control'])
  np.testing.assert_allclose(control, np.average(own, 0, weights), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_fednova_under_a_fixed_divisor_takes_the_mean_length():
  """Twice the divisor is half the step; not a quarter, as if the length were halved, too."""
  one, two = (played(make('fednova'), 1, equal(d), all_of_them()) for d in (10.0, 20.0))
  moved = lambda state: tiny.vec(state.params) - twins.START
  np.testing.assert_allclose(moved(two), moved(one) / 2, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', ('mime', 'mime_lite'))
def test_the_gradient_of_mime_is_a_mean_under_a_fixed_divisor(name):
  one, two = (played(make(name), 1, equal(d)).servers['algorithm'] for d in (None, 20.0))
  np.testing.assert_allclose(tiny.vec(two['momentum']), tiny.vec(one['momentum']), rtol=1e-5)


@pytest.mark.parametrize('name', ACCUMULATE)
def test_a_total_that_is_wrong_or_private_or_rescaled_is_refused(name):
  draw = uniform(tiny.N, tiny.C)
  with pytest.raises(IncompatibleStages, match='must be their number, 10, got 58'):
    tiny.build(compose(make(name), draw, equal()))
  chosen = importance(tiny.N, tiny.C)
  with pytest.raises(IncompatibleStages, match="'select' multiplies it by a number of the round"):
    tiny.build(compose(make(name), by_examples(), *chosen))
  noise = central(0.5, 1.0)
  with pytest.raises(IncompatibleStages, match="private under 'weigh': weigh all alike, by equal"):
    tiny.build(compose(make(name), poisson(tiny.N, 0.5), capped(5, 4.0), noise))


def test_what_an_attack_would_leave_out_is_refused():
  with pytest.raises(IncompatibleStages, match="'sign_flip' forges the update alone, and"):
    tiny.build(compose(make('scaffold'), uniform(tiny.N, tiny.C), by_examples(), sign_flip(2)))


def test_a_length_is_known_of_sgd_alone():
  with pytest.raises(ValueError, match='optimizer must be Sgd'):
    fednova(tiny.loss, learning_rate=0.1, batch_size=4, optimizer=optax.adam)
  assert fednova(tiny.loss, learning_rate=0.1, batch_size=4, optimizer=optax.sgd)


def test_scaffold_is_short():
  """35 lines without its docstring."""
  source = inspect.getsource(scaffold)
  code = source.replace(scaffold.__doc__, '').splitlines()
  assert len([x for x in code if x.strip().strip('"')]) <= 35
