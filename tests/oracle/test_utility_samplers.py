"""Power of choice and Oort: whose losses are asked for, and who is chosen by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny
from scipy import stats

from fedjax_mem.core import Context, Task, compose
from fedjax_mem.core.examples import Examples
from fedjax_mem.stages.select import oort, power_of_choice
from fedjax_mem.stages.select._losses import measured
from fedjax_mem.stages.select.oort import Utility, utilities
from fedjax_mem.stages.select.power_of_choice import LastLoss
from fedjax_mem.stages.weigh import by_examples

DRAWS = 4000
N = 8


def context(key, round=0):
  return Context(key, key, jnp.int32(round), None, None, None, None, None)


def drawn(layer, table, round=0):
  draw = lambda key: tiny.drawn(layer, context(key, round), (), table)[0].id
  ids = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), DRAWS)))
  assert ids.min() >= 0 and all(len(set(row)) == ids.shape[1] for row in ids.tolist())
  return ids


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', (2, 64))
def test_losses_are_those_of_the_clients_own_examples(batch_size):
  pop, params = tiny.population(), tiny.initial()
  for client in (0, 1):
    # Side by side with a larger client: the loop runs on, and what is beyond must not count.
    view = Examples(
      pop.arrays, pop.index, pop.start[client], pop.count[client], jnp.int32(9), max(tiny.COUNTS)
    )
    found = measured(tiny.loss, Task(params, view), batch_size)
    each = np.asarray(tiny.loss(params, {k: jnp.asarray(v) for k, v in tiny.DATA[client].items()}))
    np.testing.assert_allclose(found, [each.mean(), (each**2).mean(), len(each)], rtol=1e-5)


LOSSES = np.array([3.0, 1, 7, 2, 9, 4, 5, 6], np.float32)


def seen(*unseen):
  return LastLoss(jnp.asarray(LOSSES), jnp.asarray([i not in unseen for i in range(N)]))


def test_of_all_clients_those_of_highest_loss_take_part():
  ids = drawn(power_of_choice(N, 3, tiny.loss, candidates=N), seen())
  assert (np.sort(ids, 1) == [2, 4, 7]).all()


def test_those_never_seen_come_first_and_in_random_order():
  ids = drawn(power_of_choice(N, 2, tiny.loss, candidates=N), seen(0, 1, 3))
  assert set(ids.ravel().tolist()) == {0, 1, 3}
  counts = np.bincount(ids.ravel(), minlength=4)[[0, 1, 3]]
  # Two of three at random: each left out in a third of the draws.
  assert stats.chisquare(DRAWS - counts).pvalue > 1e-5


def test_candidates_are_drawn_in_proportion_to_size():
  sizes = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float64)
  layer = power_of_choice(N, 1, tiny.loss, candidates=1, sizes=sizes)
  counts = np.bincount(drawn(layer, seen()).ravel(), minlength=N)
  assert stats.chisquare(counts, DRAWS * sizes / sizes.sum()).pvalue > 1e-5


def test_of_two_candidates_the_one_of_higher_loss_wins():
  sizes = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float64)
  share = sizes / sizes.sum()
  wins = np.zeros(N)
  for i in range(N):
    for j in range(N):
      if i != j:  # i first, then j of those left
        wins[i if LOSSES[i] > LOSSES[j] else j] += share[i] * share[j] / (1 - share[i])
  layer = power_of_choice(N, 1, tiny.loss, candidates=2, sizes=sizes)
  counts = np.bincount(drawn(layer, seen()).ravel(), minlength=N)
  possible = wins > 0
  assert not counts[~possible].any()
  assert stats.chisquare(counts[possible], DRAWS * wins[possible]).pvalue > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('make', (power_of_choice, oort))
def test_a_client_writes_what_it_saw_at_the_model_it_got(make):
  sim = tiny.build(compose(make(tiny.N, 4, tiny.loss), tiny.algorithm(), by_examples()))
  state, metrics = sim.run(sim.init(tiny.initial()), 1)
  table, ids = state.clients['select'], set(metrics['ids'][0].tolist()) - {-1}
  for i in range(tiny.N):
    data = {k: jnp.asarray(v) for k, v in tiny.DATA[i].items()}
    each = np.asarray(tiny.loss(tiny.initial(), data))
    if make is power_of_choice:
      value, on = each.mean(), bool(table.seen[i])
      assert table.loss[i] == pytest.approx(value if i in ids else 0, rel=1e-5)
    else:
      value, on = len(each) * np.sqrt((each**2).mean()), int(table.last[i]) == 1
      assert table.value[i] == pytest.approx(value if i in ids else 0, rel=1e-5)
    assert on == (i in ids)


def test_utilities_are_clipped_and_rise_with_the_time_since_the_last_round():
  value = np.array([1.0, 2, 300, 4, 0], np.float32)
  last = np.array([1, 9, 3, 10, 0], np.int32)
  got = utilities(Utility(jnp.asarray(value), jnp.asarray(last)), jnp.int32(9))
  # Of four that are seen, the 95% quantile is the third.
  expected = np.minimum(value, 4) + np.sqrt(0.1 * np.log(10) / np.maximum(last, 1))
  np.testing.assert_allclose(np.asarray(got)[:4], expected[:4], rtol=1e-5)


def known(values, last=5):
  last = [0 if v is None else last for v in values]
  return Utility(jnp.asarray([v or 0.0 for v in values], jnp.float32), jnp.asarray(last, jnp.int32))


@pytest.mark.first(1)
@pytest.mark.parametrize(('round', 'places'), ((0, 4), (40, 2), (500, 1)))  # of 3.6, 1.6, 0.8
def test_exploration_falls_to_its_least_share(round, places):
  table = known([5.0, 4, 3, 2, None, None, None, None])
  layer = oort(N, 4, tiny.loss, explore=0.9, decay=0.98, least_explore=0.2)
  new = (drawn(layer, table, round) >= 4).sum(1)
  assert (new == places).all()


def test_without_exploration_the_useful_are_taken():
  table = known([50.0, 40, 30, 1, 2, 3, 1, 2])
  ids = drawn(oort(N, 3, tiny.loss, explore=0, least_explore=0), table)
  assert (np.sort(ids, 1) == [0, 1, 2]).all()


def test_those_near_the_cut_off_are_drawn_by_utility():
  table = known([50.0, 40, 10, 9.9, 9.8, 1, 2, 3])
  ids = drawn(oort(N, 3, tiny.loss, explore=0, least_explore=0), table, 4)
  assert set(ids.ravel().tolist()) == {0, 1, 2, 3, 4}
  assert len(set(map(tuple, np.sort(ids, 1).tolist()))) == 10  # every three of the five


def test_slow_clients_are_passed_over():
  table = known([10.0] * N)
  seconds = [1.0] * 4 + [10.0] * 4
  plain = drawn(oort(N, 4, tiny.loss, explore=0, least_explore=0, durations=seconds), table)
  assert set(plain.ravel().tolist()) == set(range(N))
  layer = oort(N, 4, tiny.loss, explore=0, least_explore=0, durations=seconds, preferred_seconds=2)
  assert (np.sort(drawn(layer, table), 1) == [0, 1, 2, 3]).all()


def test_unknown_clients_are_drawn_by_speed_and_the_rest_is_filled_up():
  seconds = np.array([1.0, 2, 4, 4, 1, 1, 1, 1])
  layer = oort(N, 1, tiny.loss, explore=1, least_explore=1, durations=seconds)
  counts = np.bincount(drawn(layer, known([None] * 4 + [1.0] * 4)).ravel(), minlength=N)
  assert stats.chisquare(counts[:4], DRAWS * np.array([4, 2, 1, 1]) / 8).pvalue > 1e-5
  assert not counts[4:].any()
  full = oort(N, 4, tiny.loss, explore=1, least_explore=1)
  ids = drawn(full, known([None] + [1.0] * 7))
  assert (ids == 0).any(1).all()  # one is unknown, three places are left for the others


def test_a_draw_by_loss_states_no_chance_to_be_divided_by():
  layer = power_of_choice(N, 3, tiny.loss)
  cohort, _, _ = tiny.drawn(layer, context(jax.random.key(0)), (), seen())
  np.testing.assert_array_equal(cohort.chance, np.ones(3))
