"""Clients that are away or late: traces, the virtual clock, and that runs resume with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny
from scipy import stats

from fedjax_mem.core import Context, compose
from fedjax_mem.stages.select import (
  contribution,
  diurnal,
  draw_durations,
  dropout,
  importance,
  markov,
  stragglers,
  uniform,
)
from fedjax_mem.stages.weigh import by_examples

N = 60


def context(key, round=0, server_state=None):
  common = jax.random.fold_in(key, 1), jnp.int32(round)
  return Context(key, *common, None, None, None, server_state, None)


def traced(chain, rounds, seed=0):
  """Returns who of everyone is there in each round, [rounds, N], cohorts, metrics and states."""

  def step(states, round):
    cohort, after, told = None, [], {}
    for number, (layer, state) in enumerate(zip(chain, states, strict=True)):
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), round), number)
      cohort, state, metrics = tiny.drawn(layer, context(key, round, state), state, cohort=cohort)
      after.append(state)
      told |= metrics
    here = jnp.zeros(N, bool).at[cohort.id].set(cohort.real, mode='drop')
    return after, (here, cohort, told)

  keys = jax.random.split(jax.random.key(seed + 1), len(chain))
  start = [x.value(context(key)) for x, key in zip(chain, keys, strict=True)]
  _, out = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(rounds, dtype=jnp.int32)))(start)
  return *jax.tree.map(np.asarray, out), start


@pytest.mark.slow
def test_a_day_is_a_sine_with_a_phase_of_each_client():
  rounds, period, low, high = 4800, 12, 0.2, 0.8
  here, cohort, metrics, (_, phase) = traced((uniform(N, N), diurnal(N, low, high, period)), rounds)
  assert 0 <= phase.min() < 0.2 and 0.8 < phase.max() < 1
  turn = (np.arange(period) / period)[:, None] + np.asarray(phase)
  expected = low + (high - low) * (1 + np.sin(2 * np.pi * turn)) / 2
  times = here.reshape(-1, period, N).sum(0)
  z = (times - 400 * expected) / np.sqrt(400 * expected * (1 - expected))
  assert np.abs(z).max() < 5 and stats.kstest(z.ravel(), 'norm').pvalue > 1e-4
  np.testing.assert_array_equal(metrics['unavailable'], N - here.sum(1))
  # Who is away is padding.
  away = ~cohort.real
  assert (cohort.id[away] == N).all() and not cohort.arrived[away].any()
  assert (cohort.chance[away] == 1).all() and cohort.arrived[cohort.real].all()


@pytest.mark.slow
def test_a_markov_trace_has_its_rates_from_the_first_round_on():
  leave, join, rounds = 0.2, 0.1, 3000
  here, _, metrics, _ = traced((uniform(N, N), markov(N, leave, join)), rounds)
  was, now = here[:-1], here[1:]
  for first, rate, then in ((was, leave, ~now), (~was, join, now)):
    assert stats.binomtest(int((first & then).sum()), int(first.sum()), rate).pvalue > 1e-4
  layer = markov(N, leave, join)
  starts = np.stack([layer.value(context(jax.random.key(i))) for i in range(100)])
  assert stats.binomtest(int(starts.sum()), starts.size, join / (join + leave)).pvalue > 1e-4
  np.testing.assert_array_equal(metrics['unavailable'], N - here.sum(1))


@pytest.mark.slow
def test_two_traces_leave_those_that_both_have():
  both = uniform(N, N), markov(N, 0.2, 0.3), diurnal(N, 0.5, 0.5)
  here, _, _, start = traced(both, 500)
  assert here.mean() == pytest.approx(0.6 * 0.5, abs=0.02)
  assert [x.shape for x in jax.tree.leaves(start)] == [(N,), (N,)]  # no state beyond [N]


SECONDS = np.linspace(1, 6, N).astype(np.float32)


def test_the_round_lasts_until_the_slowest_has_arrived():
  _, cohort, metrics, _ = traced((uniform(N, 5), stragglers(N, SECONDS)), 200)
  np.testing.assert_allclose(metrics['virtual_seconds'], SECONDS[cohort.id].max(1))
  assert cohort.arrived.all() and not metrics['late'].any()


def test_who_is_beyond_the_deadline_is_lost():
  _, cohort, metrics, _ = traced((uniform(N, 5), stragglers(N, SECONDS, deadline=4.0)), 200)
  seconds = SECONDS[cohort.id]
  late = seconds > 4
  assert late.any() and not late.all()
  np.testing.assert_array_equal(cohort.arrived, ~late)
  assert cohort.real.all()
  np.testing.assert_array_equal(metrics['late'], late.sum(1))
  expected = np.where(late.any(1), 4.0, seconds.max(1))
  np.testing.assert_allclose(metrics['virtual_seconds'], expected)


@pytest.mark.slow
def test_the_server_waits_for_those_that_drop_out_only_with_a_deadline():
  for deadline in (None, 20.0):
    chain = uniform(N, 5), dropout(0.4), stragglers(N, SECONDS, deadline)
    _, cohort, metrics, _ = traced(chain, 200)
    slowest = np.where(cohort.arrived, SECONDS[cohort.id], 0).max(1)
    lost = ~cohort.arrived.all(1)
    assert lost.any() and not lost.all() and not metrics['late'].any()
    expected = slowest if deadline is None else np.where(lost, deadline, slowest)
    np.testing.assert_allclose(metrics['virtual_seconds'], expected)


def test_nobody_there_takes_no_time():
  chain = uniform(N, 5), diurnal(N, 0.0, 0.0), stragglers(N, SECONDS, deadline=9.0)
  _, cohort, metrics, _ = traced(chain, 3)
  assert not cohort.real.any() and not metrics['virtual_seconds'].any()


@pytest.mark.slow
def test_jitter_is_log_normal_and_of_each_client_and_round():
  _, cohort, metrics, _ = traced((uniform(N, 1), stragglers(N, SECONDS, jitter=0.3)), 3000)
  z = np.log(metrics['virtual_seconds'] / SECONDS[cohort.id[:, 0]]) / 0.3
  assert stats.kstest(z, 'norm').pvalue > 1e-4 and len(np.unique(z)) > 2900


def test_durations_are_log_normal_in_proportion_to_size_and_of_the_seed():
  seconds = draw_durations(20_000, 10.0, 0.5, seed=3)
  assert stats.kstest(np.log(seconds / 10) / 0.5, 'norm').pvalue > 1e-4
  np.testing.assert_array_equal(seconds, draw_durations(20_000, 10.0, 0.5, seed=3))
  assert (seconds != draw_durations(20_000, 10.0, 0.5, seed=4)).all()
  sizes = [1.0, 2.0, 3.0]
  np.testing.assert_allclose(draw_durations(3, 4.0, 0.0, sizes=sizes), [2, 4, 6])


def made(name):
  durations = np.linspace(1, 6, tiny.N)
  inner = {
    'uniform': uniform(tiny.N, 6),
    'importance': importance(tiny.N, 5, capacity=8)[0],
    'contribution': contribution(tiny.N, 4, tiny.loss, tiny.DATA[1]),
  }[name.split('+')[0]]
  trace = diurnal if 'diurnal' in name else markov
  late = stragglers(tiny.N, durations, deadline=5.0, jitter=0.1, looks='nothing')
  return inner, trace(tiny.N), dropout(0.1), late


@functools.cache
def simulation(name, mode='vmap'):
  return tiny.build(compose(tiny.algorithm(), by_examples(), made(name)), mode)


@pytest.mark.slow
def test_every_execution_has_the_same_clients():
  one, told = tiny.execute(simulation('importance+markov'), 6)
  other, metrics = tiny.execute(simulation('importance+markov', 'chunk'), 6)
  tiny.assert_close(one, other)
  for name in ('select/unavailable', 'select/late', 'select/virtual_seconds', 'clients'):
    np.testing.assert_allclose(metrics[name], told[name], rtol=1e-6)
  assert told['select/unavailable'].any() and told['select/late'].any()


@pytest.mark.slow
@pytest.mark.parametrize('name', ('uniform+markov', 'importance+markov', 'contribution+diurnal'))
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name):
  sim = simulation(name)
  whole, told = tiny.execute(sim, 6)
  half, _ = tiny.execute(sim, 2)
  rest, metrics = tiny.execute(sim, 4, state=jax.tree.map(jnp.asarray, half))
  tiny.assert_same_bits(rest, whole)
  np.testing.assert_array_equal(metrics['ids'], told['ids'][2:])
  other, _ = tiny.execute(sim, 6, seed=tiny.SEED + 1)
  assert (tiny.vec(other.params) != tiny.vec(whole.params)).any()


@pytest.mark.slow
@pytest.mark.parametrize('name', ('uniform+diurnal', 'uniform+markov'))
def test_cohorts_are_known_ahead(name):
  sim = simulation(name)
  ahead = np.asarray(sim.cohorts(sim.init(tiny.initial()), 6))
  told = tiny.execute(sim, 6)[1]['ids']
  assert (told < 0).any()
  for drawn, came in zip(ahead, told, strict=True):
    # Who is drawn and away is among them.
    assert set(came[came >= 0].tolist()) <= set(drawn.tolist())
    assert len(set(drawn[drawn < tiny.N].tolist())) == tiny.C  # before anybody is left out


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: diurnal(0), 'num_clients must be an integer >= 1, got 0'),
    (lambda: markov(1.5), 'num_clients must be an integer >= 1, got 1.5'),
    (lambda: stragglers('3', [1.0]), "num_clients must be an integer >= 1, got '3'"),
    (lambda: stragglers(1, [1.0], 2.0, looks='much'), 'at must be one of'),
    (lambda: diurnal(3, 0.5, 0.4), 'high must be at least low = 0.5, got 0.4'),
    (lambda: diurnal(3, -0.1), r'low must be a number in \[0, 1\], got -0.1'),
    (lambda: diurnal(3, period=0), 'period must be an integer >= 1, got 0'),
    (lambda: markov(3, leave=2), r'leave must be a number in \[0, 1\], got 2'),
    (lambda: markov(3, join=0), r'join must be a number in \(0, 1\], got 0'),
    (lambda: stragglers(3, None), 'durations must be given, one a client, got None'),
    (lambda: stragglers(3, [1, 2]), 'durations must be 3 finite numbers > 0'),
    (lambda: stragglers(3, [1, 2, 3], 0), 'deadline must be a finite number > 0'),
    (lambda: stragglers(3, [1, 2, 3], jitter=-1), 'jitter must be a finite number >='),
    (lambda: draw_durations(3, 0), 'median_seconds must be a finite number > 0, got 0'),
  ],
)
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
