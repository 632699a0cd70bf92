"""The contract that every stage keeps, in the tree or out of it.

`pytest tests/contract --stage package.module:factory` runs it on a factory of your own: one that
returns a `Layer`, a tuple of layers, or a server optimizer. Arguments without a default are filled
in by name where the suite knows them (`suite.ARGUMENTS`).
"""

import functools
import inspect
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import suite
from contract.suite import run, simulation
from reference import tiny
from reference.loop import plain_round

from fedjax_mem.core import Noises, Trains, validate
from fedjax_mem.engine.plan import initial_state
from fedjax_mem.engine.round import make_round

BAD = 4  # a client that is selected and arrives in the first round of the rota: ids 0 … 5


def pytest_generate_tests(metafunc):
  if 'case' not in metafunc.fixturenames:
    return
  cases = suite.cases(metafunc.config.getoption('--stage'))
  if 'mode' in metafunc.fixturenames:
    names = ('case', 'mode')
    sets = [(c, *_unpacked(m)) for c in cases for m in suite.modes(c)]
  elif 'argument' in metafunc.fixturenames:
    names = ('case', 'argument')
    sets = [(c, a, ()) for c in cases for a in _checkable(c)]
  else:
    names, sets = ('case',), [(c, ()) for c in cases]
  pairs = [
    pytest.param(c, *more, marks=(*c.marks, *marks), id='-'.join((c.name, *more)))
    for c, *more, marks in sets
  ]
  metafunc.parametrize(names, pairs, scope='module')


def _unpacked(mode):
  """Returns (mode, marks) of a mode or a `pytest.param` of one."""
  return (mode, ()) if isinstance(mode, str) else (mode.values[0], mode.marks)


def _checkable(case):
  """Returns the names of the arguments that hold, or may hold, a number or a function."""
  parameters = inspect.signature(case.factory).parameters
  values = {n: case.arguments.get(n, p.default) for n, p in parameters.items()}
  checked = lambda v: v is None or isinstance(v, numbers.Number | str) or callable(v)
  return [
    n
    for n, v in values.items()
    if (checked(v) and not isinstance(v, bool)) or isinstance(v, optax.GradientTransformation)
  ]


def test_every_registered_stage_is_under_contract(pytestconfig):
  if pytestconfig.getoption('--stage'):
    return  # only the stages given are asked about
  assert {k: set(v) for k, v in suite.registries().items()} == {
    k: set(v) for k, v in suite.IN_TREE.items()
  }, 'a registered stage needs a line in IN_TREE of tests/contract/suite.py'


def test_same_inputs_give_the_same_bits(case):
  again, metrics = tiny.execute(simulation(case))
  tiny.assert_same_bits((again, metrics), run(case))


def test_it_moves_the_parameters(case):
  assert np.abs(tiny.vec(run(case)[0].params) - tiny.vec(tiny.initial())).max() > 1e-4


def test_two_seeds_differ_where_it_is_random(case):
  sim = simulation(case)
  state = sim.init(tiny.initial())
  other, _ = tiny.execute(sim, seed=tiny.SEED + 1)
  same = all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(run(case)[0]), strict=True)
  )
  rounds = suite.draws(make_round(sim.setting), state, sim.population, *tiny.rooted(0))
  if not rounds and not suite.draws(
    functools.partial(initial_state, sim.setting), tiny.initial(), sim.population, *tiny.rooted(0)
  ):
    assert same
  elif same:  # draws that cancel in the sum, such as masks, show in the messages
    one, two = (
      plain_round(sim.setting.layers, state, sim.population, seed).messages[0] for seed in (1, 2)
    )
    assert (tiny.vec(one) != tiny.vec(two)).any()


@pytest.mark.slow
def test_jit_equals_an_eager_loop_over_clients(case):
  sim = simulation(case)
  state = sim.init(tiny.initial())
  # The second round sees what the first has left, if it leaves anything but parameters.
  left = [state.clients, *(x for name, x in state.servers.items() if name != 'select')]
  rounds = 2 if jax.tree.leaves(left) else 1
  for _ in range(rounds):
    state = plain_round(sim.setting.layers, state, sim.population, tiny.SEED).state
  tiny.assert_close(tiny.host(state), tiny.execute(sim, rounds)[0])


def test_every_execution_gives_the_same(case, mode):
  state, metrics = run(case, mode)
  expected, reported = run(case)
  tiny.assert_close(state, expected)
  for name in ('clients', 'examples', 'selected', 'finite'):
    np.testing.assert_array_equal(metrics[name], reported[name])
  # The layers' own, but for what an execution costs.
  for name in {k for k in metrics if '/' in k and not k.endswith('/wasted_steps')}:
    np.testing.assert_allclose(metrics[name], reported[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_rounds_can_be_scanned_and_keep_the_types_of_the_state(case):
  sim = simulation(case)
  state = sim.init(tiny.initial())
  step = lambda s, _: make_round(sim.setting)(s, sim.population, *tiny.rooted(0))
  after, metrics = jax.eval_shape(lambda s: jax.lax.scan(step, s, None, length=3), state)
  types = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), t)
  assert types(after) == types(state)
  assert all(x.shape[0] == 3 for x in jax.tree.leaves(metrics))


def test_a_second_segment_does_not_compile(case, compilations):
  sim = simulation(case)
  run(case)
  state = sim.init(tiny.initial())
  state, _ = sim.run(state, 1)
  compilations.clear()
  state, metrics = sim.run(state, 3)
  assert compilations == []
  assert sim.segment._cache_size() == 1
  assert int(state.round) == 4 and len(metrics['clients']) == 3


def test_a_bad_argument_is_refused_by_name(case, argument):
  value = case.arguments.get(argument, inspect.signature(case.factory).parameters[argument].default)
  wrong = [3] if callable(value) or suite.is_optimizer(value) else [math.nan, 'many']
  for bad in wrong:
    with pytest.raises(ValueError) as caught:
      case.make(**{argument: bad})
    assert argument in str(caught.value) and repr(bad) in str(caught.value)


def test_it_is_finite_on_zeros(case):
  sim = simulation(case)
  zeros = jax.tree.map(jnp.zeros_like, tiny.initial())
  pop = sim.population
  for client in range(tiny.N):
    pop = tiny.with_client(pop, client, x=0)
  state, metrics = tiny.execute(sim, pop=pop, params=zeros)
  assert np.isfinite(tiny.vec(state)).all()
  assert (metrics['not_finite'] == -1).all() and len(metrics['finite']) == tiny.ROUNDS


def test_a_client_without_weight_changes_nothing(case):
  sim = simulation(case)
  empty = tiny.with_client(sim.population, BAD, count=0)
  one, two = (tiny.execute(sim, pop=empty_with(empty, x))[0] for x in (1.0, 1e6))
  tiny.assert_same_bits(one, two)
  assert np.isfinite(tiny.vec(one)).all()


def empty_with(pop, x):
  """Returns the population where the examples that the client no longer holds are all `x`."""
  start, n = int(pop.start[BAD]), tiny.COUNTS[BAD]
  arrays = pop.arrays | {'x': pop.arrays['x'].at[start : start + n].set(x)}
  return type(pop)(arrays, pop.index, pop.start, pop.count)


def test_a_client_that_is_not_finite_is_dropped_named_and_rolled_back(case):
  sim = simulation(case)
  before = tiny.host(sim.init(tiny.initial()))
  broken = tiny.with_client(sim.population, BAD, x=jnp.nan)
  state, metrics = tiny.execute(sim, pop=broken)
  assert np.isfinite(tiny.vec(state)).all() and metrics['finite'].all()
  named = set(metrics['not_finite'].ravel().tolist()) - {-1}
  assert named <= {BAD}
  took = np.array([BAD in ids(t) and not tiny.is_lost(BAD, t) for t in range(tiny.ROUNDS)])
  there = (metrics['not_finite'] == BAD).sum(1)
  if sim.claims:  # who is named or missing would show: zeros stand for the update
    assert not named and metrics['clients'].tolist() == run(case)[1]['clients'].tolist()
    named = set() if not metrics['zeroed'].any() else {BAD}
    there = took
  elif named and not any(x.select is not None for x in own(case)):
    np.testing.assert_array_equal(there, took)
    np.testing.assert_array_equal(metrics['clients'], run(case)[1]['clients'] - took)
  # An algorithm may instead leave out the examples that are not finite, as privacy by example must.
  assert named or not any(x.fact(Noises) is None for x in own(case) if x.fact(Trains) is not None)
  if named:
    row = lambda t: jax.tree.map(lambda x: x[BAD], t)
    tiny.assert_same_bits(row(state.clients), row(before.clients))


def test_a_client_that_drops_out_keeps_its_row(case):
  sim = simulation(case)
  before = tiny.host(sim.init(tiny.initial()))
  state, metrics = tiny.execute(sim, 1)
  came = {i for i in ids(0) if not tiny.is_lost(i, 0)}
  if any(x.select is not None for x in own(case)):
    return  # the case draws its own cohort, from which nobody is lost
  assert metrics['clients'][0] == len(came) < metrics['selected'][0] == tiny.C
  for client in set(range(tiny.N)) - came:
    row = lambda t, client=client: jax.tree.map(lambda x: x[client], t)
    tiny.assert_same_bits(row(state.clients), row(before.clients))


def own(case):
  """Returns the layers that the factory made, none for an optimizer."""
  made = case.make()
  return () if suite.is_optimizer(made) else made if type(made) is tuple else (made,)


def ids(round):
  """Returns the ids that the rota selects in a round."""
  return [(round * tiny.C + i) % tiny.N for i in range(tiny.C)]


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'uniform'"):
    validate.one_of(suite.registries()['SAMPLERS'], sampler='unifrm')
