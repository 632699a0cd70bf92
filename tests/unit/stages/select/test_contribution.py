"""Selection by contribution: scores of a round, who is selected by them, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, stages, tiny
from scipy import stats

from fedjax_mem.core import Context, IncompatibleStages, Integers, Layer, Stage, compose
from fedjax_mem.engine import simulate
from fedjax_mem.stages.select import contribution, dropout
from fedjax_mem.stages.select.contribution import Score
from fedjax_mem.stages.weigh import by_examples, equal

HELD = tiny.client_data((11,), seed=9)[0]


def held_loss(flat):
  params = {'b': jnp.asarray(flat[:3], jnp.float32)}
  params['w'] = jnp.asarray(flat[3:].reshape(5, 3), jnp.float32)
  return float(tiny.loss(params, {k: jnp.asarray(v) for k, v in HELD.items()}).mean())


def gradient(params, client):
  data = {k: jnp.asarray(v) for k, v in tiny.DATA[client].items()}
  return tiny.vec(jax.grad(lambda p: tiny.loss(p, data).mean())(params))


def worths(params, ids, step):
  """Returns the values of all subsets of a round's clients, by rebuilding every model."""
  updates = [gradient(params, i) for i in ids]
  table = np.zeros(2 ** len(ids))
  for subset in range(len(table)):
    on = [k for k in range(len(ids)) if subset >> k & 1]
    weights = [tiny.COUNTS[ids[k]] for k in on]
    move = sum(w * updates[k] for w, k in zip(weights, on, strict=True)) if on else 0.0
    table[subset] = -held_loss(tiny.vec(params) - step * move / max(sum(weights), 1))
  return table


def shapley_twin(table, number):
  """Returns Shapley values by their definition, from sizes of subsets."""
  f = math.factorial
  values = np.zeros(number)
  for subset in range(len(table)):
    size = bin(subset).count('1')
    for i in range(number):
      if not subset >> i & 1:
        share = f(size) * f(number - size - 1) / f(number)
        values[i] += share * (table[subset | 1 << i] - table[subset])
  return values


def make(number=tiny.N, size=4, **options):
  options = {'validation': HELD, 'step': 0.5, 'batch_size': 4, 'explore': 0.25, **options}
  return contribution(number, size, tiny.loss, **options)


def around(layer, algorithm=None, *after):
  return compose(
    tiny.algorithm(0.5) if algorithm is None else algorithm, by_examples(), layer, *after
  )


@pytest.mark.slow
@pytest.mark.parametrize('method', ('shapley', 'leave_one_out', 'gtg'))
def test_scores_are_the_values_of_the_rounds_own_game(method):
  options = {'sweeps': 300, 'truncation': 0.0} if method == 'gtg' else {}
  sim = tiny.build(around(make(method=method, subsets=5, **options)))
  state = sim.init(tiny.initial())
  score, rounds = np.zeros(tiny.N), np.zeros(tiny.N)
  for _ in range(3):
    params = tiny.host(state.params)
    state, metrics = sim.run(state, 1)
    ids = [i for i in metrics['ids'][0].tolist() if i >= 0]
    table = worths(params, ids, 0.5)
    found = shapley_twin(table, 4)
    if method == 'leave_one_out':
      found = np.array([table[15] - table[15 ^ 1 << k] for k in range(4)])
    rounds[ids] += 1
    score[ids] += (found - score[ids]) / rounds[ids]
    # The model of everyone is the server's next one.
    assert -held_loss(tiny.vec(state.params)) == pytest.approx(table[15], abs=1e-5)
    assert metrics['select/gain'][0] == pytest.approx(table[15] - table[0], abs=2e-6)
    tolerance = 3e-3 if method == 'gtg' else 3e-6
    np.testing.assert_allclose(state.clients['select'].score, score, atol=tolerance)
    np.testing.assert_array_equal(state.clients['select'].rounds, rounds)
    if method == 'shapley':  # efficiency
      assert found.sum() == pytest.approx(metrics['select/gain'][0], abs=5e-6)
      assert metrics['select/highest'][0] == pytest.approx(found.max(), abs=3e-6)
      assert metrics['select/lowest'][0] == pytest.approx(found.min(), abs=3e-6)


@pytest.mark.devices(2)
@pytest.mark.slow
def test_a_padded_cohort_on_several_devices_scores_the_same():
  # Rows of padding would square the number of subsets, and are no players.
  one, many = (tiny.build(around(make()), mode) for mode in ('vmap', 'loop on devices'))
  (a, _), (b, metrics) = (tiny.execute(sim, 3) for sim in (one, many))
  tiny.assert_close(a, b)
  assert metrics['select/subsets'].tolist() == [2**4 + 2] * 3


@pytest.mark.slow
def test_who_is_lost_or_not_finite_gets_no_score():
  layer = make(size=tiny.N)
  sim = tiny.build(around(layer, None, dropout(0.4)))
  pop = tiny.with_client(sim.population, 3, x=jnp.nan)
  state, metrics = tiny.execute(sim, 1, pop=pop)
  table = state.clients['select']
  assert int(table.rounds.sum()) == metrics['clients'][0] < tiny.N
  assert table.rounds[3] == 0 and table.score[3] == 0
  # Those that are lost are no players: the others share the gain.
  assert table.score.sum() == pytest.approx(metrics['select/gain'][0], abs=2e-2)


def drawn(layer, table, number=3000):
  ctx = lambda key: Context(key, key, jnp.int32(0), None, None, None, None, None)
  draw = lambda key: tiny.drawn(layer, ctx(key), (), table)[0].id
  return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), number)))


@pytest.mark.slow
def test_the_highest_scores_and_a_stated_share_at_random():
  score = np.array([0.1, 5, 3, -2, 4, 0, 1, 2, 9, 8], np.float32)
  table = Score(jnp.asarray(score), jnp.asarray([1] * 8 + [0] * 2, jnp.int32))  # 8, 9 have none
  ids = drawn(make(size=5, explore=0.4), table)
  assert all(len(set(row)) == 5 for row in ids.tolist())
  assert (np.sort(ids[:, :3], 1) == [1, 2, 4]).all()
  others = np.bincount(ids[:, 3:].ravel(), minlength=10)
  assert not others[[1, 2, 4]].any()
  assert stats.chisquare(others[[0, 3, 5, 6, 7, 8, 9]]).pvalue > 1e-5
  all_random = np.bincount(drawn(make(size=5, explore=1.0), table).ravel(), minlength=10)
  assert stats.chisquare(all_random).pvalue > 1e-5
  assert (np.sort(drawn(make(size=3, explore=0.0), table), 1) == [1, 2, 4]).all()


@pytest.mark.slow
@pytest.mark.parametrize('explore', (0.3, 0.9))
def test_a_share_that_is_no_whole_number_of_places_is_their_mean(explore):
  table = Score(jnp.arange(10, dtype=jnp.float32), jnp.ones(10, jnp.int32))
  ids = drawn(make(size=1, explore=explore), table)
  # Who is best is drawn at random, too.
  assert stats.binomtest(int((ids != 9).sum()), len(ids), 0.9 * explore).pvalue > 1e-5
  ids = drawn(make(size=3, explore=explore), table)  # 0.9 or 2.7 places
  assert all(len(set(row)) == 3 for row in ids.tolist())
  known = 3 - np.floor(3 * explore).astype(int)
  assert (ids[:, : known - 1] == [9, 8, 7][: known - 1]).all()
  others = (ids[:, known - 1] != 10 - known).mean()
  rest = 3 * explore % 1
  # One more place to explore: any of those left but the best of them.
  assert others == pytest.approx(rest * (10 - known) / (11 - known), abs=0.04)


@pytest.mark.slow
def test_a_client_that_harms_is_left_alone():
  # One client sends the opposite of what lowers the loss: its score is the lowest.
  data = [dict(x) for x in tiny.DATA]
  data[2]['y'] = (data[2]['y'] + 1) % tiny.CLASSES
  layer = make(explore=0.5, size=4)
  sim = tiny.build(around(layer), pop=tiny.population(data))
  state, metrics = tiny.execute(sim, 8)
  table = state.clients['select']
  assert table.rounds[2] > 0 and table.score[2] < 0
  assert (metrics['ids'][-1] != 2).any()


def test_a_validation_split_is_needed():
  for nothing in (None, {}, {'x': np.zeros((0, 5)), 'y': np.zeros(0, np.int32)}):
    with pytest.raises(
      ValueError, match=r'validation must be at least one example .*neither train'
    ):
      contribution(10, 4, tiny.loss, validation=nothing)


def test_updates_that_nobody_sees_alone_are_refused():
  with pytest.raises(IncompatibleStages, match=r"'select' looks at single messages, and 'mask'"):
    tiny.build(around(make(), None, *stages.secure_sum()))
  with pytest.raises(IncompatibleStages, match=r"'select' selects by each client's own .*'encode'"):
    tiny.build(around(make(), None, stages.fixed_point(8)))
  hidden = Stage(lambda ctx, m, s: (m, s, {}), facts=(Integers(32, tiny.N),))
  with pytest.raises(IncompatibleStages, match=r"'select' selects by each client's own .*'hidden'"):
    tiny.build(around(make(), None, Layer('hidden', client=hidden)))


def test_updates_beside_something_else_are_refused():
  algorithm = stages.scaffold(tiny.loss, learning_rate=0.1, steps=1, num_clients=tiny.N)
  with pytest.raises(IncompatibleStages, match=r'contribution.* sends its update alone'):
    tiny.build(around(make(), algorithm))


def test_it_comes_after_the_weighing():
  pop = given.population({'a': np.ones((9, 2), np.float32)})
  with pytest.raises(IncompatibleStages, match="must come after 'weigh'"):
    simulate(compose(given.algorithm(), make(9), equal()), {'a': jnp.zeros(2)}, pop)
