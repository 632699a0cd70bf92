"""Segments of rounds: one program, donated state, early stops, other populations."""

import dataclasses
import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from reference import stages, tiny

from fedjax_mem.core import Layer, Mean, Stage, Total, compose, stack_clients
from fedjax_mem.engine import Execution, simulate
from fedjax_mem.engine.round import make_round
from fedjax_mem.kernels.nn.rewrite import as_it_is
from fedjax_mem.stages.algorithm import fedavg
from fedjax_mem.stages.select import poisson, round_robin, uniform
from fedjax_mem.stages.weigh import by_examples, equal


@pytest.fixture(scope='module')
def plain():
  return tiny.build(tiny.layers())


@pytest.mark.slow
def test_segments_of_any_length_are_one_program_and_make_one_run(plain):
  whole, rows = tiny.execute(plain, 6)
  state = plain.init(tiny.initial())
  parts = []
  for rounds in (1, 3, 2):
    state, metrics = plain.run(state, rounds)
    parts.append(metrics)
    assert all(len(x) == rounds for x in metrics.values())
  tiny.assert_same_bits(tiny.host(state), whole)
  for name, values in rows.items():
    np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), values, err_msg=name)
  assert plain.segment._cache_size() == 1


@pytest.mark.slow
def test_what_is_donated_is_not_the_callers(plain):
  params = tiny.initial()
  before = tiny.host(params)
  state = plain.init(params)
  old = state
  state, _ = plain.run(state, 2)
  tiny.assert_same_bits(tiny.host(params), before)
  tiny.assert_same_bits(tiny.host(plain.population), tiny.host(tiny.population()))
  assert all(x.is_deleted() for x in jax.tree.leaves(old.params))
  # One buffer in two leaves would be donated twice.
  shared = jnp.zeros((3,))
  twice = dataclasses.replace(plain)
  state, _ = twice.run(plain.init({'b': shared, 'w': jnp.zeros((5, 3))}), 1)
  assert not shared.is_deleted()


@pytest.mark.first(1)
@pytest.mark.parametrize('kept', [True, False])
def test_a_slow_convolution_in_a_round_is_named(kept):
  def loss(params, batch, key):
    y = jax.lax.conv(batch['x'], params, (1, 1), 'SAME')
    return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), 'VALID').sum(
      (1, 2, 3)
    )

  params, clients = (
    jnp.ones((2, 1, 3, 3)),
    stack_clients([{'x': np.ones((4, 1, 6, 6), np.float32)}] * 2),
  )

  def trace(loss):
    train = fedavg(loss, learning_rate=0.1, batch_size=2)
    looped = Execution(mode='loop', devices=1)
    sim = simulate((train, uniform(2, 2), by_examples()), params, clients, execution=looped)
    keys = sim._keys(None, None)
    sim.segment.trace(
      jax.eval_shape(sim._init, params, clients, *keys), clients, *keys, np.int32(1)
    )

  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    trace(as_it_is(loss) if kept else loss)
  found = [str(x.message) for x in seen if 'fedjax_mem.models.fast_convolutions' in str(x.message)]
  assert len(found) == kept and all('of float32[2,1,6,6], float32[2,1,3,3]' in x for x in found)


def test_compiling_alone_changes_nothing(plain):
  state = plain.compile(plain.init(tiny.initial()))
  tiny.assert_same_bits(tiny.host(state), tiny.host(plain.init(tiny.initial())))


def test_nothing_is_moved_to_or_from_the_host_within_a_segment(plain):
  state = plain.init(tiny.initial())
  args = jax.device_put((*tiny.rooted(1), np.int32(3)))
  with jax.transfer_guard('disallow'):
    _, _, done = plain.segment(state, plain.population, *args)
  assert int(done) == 3


def broken_at(round):
  def apply(ctx, message, state):
    bad = jnp.where(ctx.round == round, jnp.inf, 0.0)
    return message._replace(update=jax.tree.map(lambda x: x + bad, message.update)), state, {}

  return Layer('broken', server=Stage(apply))


@pytest.mark.slow
def test_parameters_that_are_not_finite_stop_the_segment_at_that_round():
  sim = tiny.build(tiny.layers(broken_at(2)))
  state, metrics = sim.run(sim.init(tiny.initial()), 6)
  assert metrics['finite'].tolist() == [True, True, False]
  assert int(state.round) == 3 and not np.isfinite(tiny.vec(state.params)).any()


def test_a_cohort_without_a_finite_update_stops_the_segment_and_changes_nothing(plain):
  broken = plain.population
  for client in range(tiny.C, tiny.N):  # the cohort of round 1: clients 6 … 9, 0 and 1
    broken = tiny.with_client(broken, client, x=jnp.nan)
  for client in (0, 1):
    broken = tiny.with_client(broken, client, x=jnp.inf)
  one, _ = tiny.execute(plain, 1, pop=broken)
  state, metrics = tiny.execute(plain, 4, pop=broken)
  assert metrics['finite'].tolist() == [True, True] and metrics['clients'].tolist() == [3, 0]
  assert int(state.round) == 2
  tiny.assert_same_bits(state.params, one.params)


@pytest.mark.slow
@pytest.mark.parametrize('weigh', (equal(), by_examples()), ids=('equal', 'by_examples'))
def test_a_cohort_of_which_nobody_arrives_keeps_parameters_and_optimizer(weigh):
  import optax

  from fedjax_mem.stages.algorithm import fedsgd

  algorithm = fedsgd(tiny.loss, batch_size=16, server_optimizer=optax.sgd(0.5, momentum=0.9))
  gone = lambda ctx, cohort: cohort._replace(arrived=cohort.arrived & (ctx.round != 1))
  nobody = tiny.changed(round_robin(tiny.N, tiny.C), gone)
  sim = tiny.build(compose(algorithm, nobody, weigh))
  one, _ = tiny.execute(sim, 1)
  two, metrics = tiny.execute(sim, 2)
  tiny.assert_same_bits(
    (one.params, one.servers['algorithm']), (two.params, two.servers['algorithm'])
  )
  assert metrics['clients'].tolist() == [6, 0] and metrics['examples'].tolist()[1] == 0
  assert np.isnan(metrics['algorithm/train_loss'][1]) and metrics['finite'].all()
  three, _ = tiny.execute(sim, 3)
  assert (tiny.vec(three.params) != tiny.vec(two.params)).all()


@pytest.mark.slow
def test_an_empty_poisson_cohort_is_a_round_too():
  sim = tiny.build(compose(tiny.algorithm(), poisson(tiny.N, 0.05, capacity=3), equal()))
  _, metrics = tiny.execute(sim, 8)
  assert 0 in metrics['selected'] and metrics['finite'].all()
  assert (metrics['selected'] == metrics['clients']).all()


def reporting():
  """Returns a layer whose metrics are of every kind, on both sides."""

  def client(ctx, message, state):
    n, number = message.weight, ctx.client.id.astype(jnp.float32)
    return (
      message,
      state,
      {
        'scalar': ctx.client.id,
        'mean': Mean(n * number, n),
        'total': Total(ctx.client.id),
      },
    )

  def server(ctx, message, state):
    return (
      message,
      state,
      {
        'round': ctx.round,
        'server_mean': Mean(jnp.float32(6), jnp.float32(4)),
        'server_total': Total(jnp.int32(5)),
      },
    )

  return Layer('report', client=Stage(client), server=Stage(server))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ('vmap', 'loop on devices'))
def test_metrics_are_means_over_those_that_arrived(mode):
  sim = tiny.build(compose(tiny.algorithm(), tiny.rota(), reporting(), equal()), mode)
  _, metrics = tiny.execute(sim)
  for t in range(tiny.ROUNDS):
    ids = [(t * tiny.C + i) % tiny.N for i in range(tiny.C)]
    came = [i for i in ids if not tiny.is_lost(i, t)]
    n = [tiny.COUNTS[i] for i in came]
    assert metrics['report/scalar'][t] == pytest.approx(np.mean(came))
    assert metrics['report/mean'][t] == pytest.approx(np.average(came, weights=n))
    assert metrics['report/total'][t] == sum(came)
    assert set(metrics['ids'][t].tolist()) - {-1} == set(ids)
    assert (metrics['selected'][t], metrics['clients'][t]) == (tiny.C, len(came))
    assert metrics['examples'][t] == sum(n)
    assert metrics['report/round'][t] == t
    assert metrics['report/server_mean'][t] == 1.5 and metrics['report/server_total'][t] == 5
  assert metrics['report/total'].dtype == np.int32
  assert metrics['not_finite'].shape == (tiny.ROUNDS, sim.setting.capacity)


def test_a_metric_that_is_not_a_scalar_is_refused():
  def client(ctx, message, state):
    return message, state, {'norms': message.update['b']}

  layer = Layer('report', client=Stage(client))
  with pytest.raises(
    ValueError, match=r"metric 'report/norms' must be a scalar, .* got shape \(3,\)"
  ):
    tiny.build(tiny.layers(layer))


STREAMED = {'vmap': 'vmap', 'chunk on devices': 'chunk on devices'}


@pytest.mark.slow
@pytest.mark.parametrize('mode', STREAMED)
def test_streamed_examples_equal_resident_ones(mode):
  sim = tiny.build(
    compose(fedavg(tiny.loss, learning_rate=0.2, batch_size=4), uniform(tiny.N, 4), equal()), mode
  )
  whole, _ = tiny.execute(sim, 4)
  state = sim.init(tiny.initial())
  rows = 4 * 2 * max(tiny.COUNTS)
  for _ in range(2):
    ids = np.asarray(sim.cohorts(state, 2))
    state, _ = sim.run(state, 2, population=_only(ids, rows))
  tiny.assert_same_bits(tiny.host(state), whole)
  assert sim.segment._cache_size() <= 2  # resident and streamed examples are of two shapes


def _only(ids, rows):
  """Returns a population that holds the examples of these clients alone, padded to `rows`."""
  whole = tiny.population()
  start = np.zeros(tiny.N, np.int32)
  x = np.full((rows, tiny.FEATURES), np.nan, np.float32)
  y = np.full(rows, 99, np.int32)
  place = 0
  for client in sorted({int(i) for i in ids.ravel() if i < tiny.N}):
    n = tiny.COUNTS[client]
    start[client] = place
    x[place : place + n], y[place : place + n] = tiny.DATA[client]['x'], tiny.DATA[client]['y']
    place += n
  return dataclasses.replace(
    whole,
    arrays={'x': jnp.asarray(x), 'y': jnp.asarray(y)},
    index=jnp.arange(rows, dtype=jnp.int32),
    start=jnp.asarray(start),
  )


@pytest.mark.devices(2)
@pytest.mark.slow
def test_streamed_segments_do_not_compile_again_on_several_devices():
  sim = tiny.build(tiny.layers(), 'chunk on devices')
  state = sim.init(tiny.initial())
  for _ in range(3):
    state, _ = sim.run(state, 1, population=tiny.population())
  assert sim.segment._cache_size() == 1


@pytest.mark.devices(2)
@pytest.mark.slow
def test_tables_on_several_devices_do_not_compile_again():
  sim = tiny.build(tiny.layers(stages.top_k(0.3)), 'chunk on devices')
  state = sim.init(tiny.initial())
  placed = lambda s: [x.sharding for x in jax.tree.leaves(s)]
  before = placed(state)
  for _ in range(3):
    state, _ = sim.run(state, 1)
    assert placed(state) == before
  assert sim.segment._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'sampler', (uniform(tiny.N, 4), poisson(tiny.N, 0.4, 8), round_robin(tiny.N, 4))
)
def test_the_cohorts_ahead_are_those_that_are_drawn(sampler):
  note = Layer('note', client=Stage(lambda c, m, s: (m, s + 1, {}), lambda ctx: jnp.int32(0)))
  sim = tiny.build(compose(tiny.algorithm(), sampler, equal(), note))
  state = sim.init(tiny.initial())
  state, _ = sim.run(state, 1)
  ids = np.asarray(sim.cohorts(state, 3))
  before = np.array(state.clients['note'])
  state, _ = sim.run(state, 3)
  drawn = np.bincount(ids[ids < tiny.N], minlength=tiny.N)
  np.testing.assert_array_equal(np.array(state.clients['note']) - before, drawn)


@pytest.mark.slow
def test_cohorts_ahead_are_refused_for_a_sampler_with_feedback():
  sim = tiny.build(compose(tiny.algorithm(), stages.importance(tiny.N, 5, 8), by_examples()))
  state = sim.init(tiny.initial())
  assert sim.cohorts(state, 1).shape == (1, 8)
  with pytest.raises(ValueError, match='rounds must be 1 for a sampler with feedback, got 2'):
    sim.cohorts(state, 2)
  turn = round_robin(tiny.N, 4)
  listens = Stage(lambda ctx, value, own: (value, own, {}))
  sim = tiny.build(compose(tiny.algorithm(), turn._replace(server=listens), equal()))
  with pytest.raises(ValueError, match='rounds must be 1 for a sampler with feedback, got 3'):
    sim.cohorts(sim.init(tiny.initial()), 3)


@pytest.mark.slow
@pytest.mark.parametrize('platform', ('cuda', 'tpu'))
def test_a_round_exports_for_accelerators(platform):
  layers = compose(fedavg(tiny.loss, learning_rate=0.1, batch_size=4), uniform(tiny.N, 4), equal())
  sim = tiny.build(layers)
  state = sim.init(tiny.initial())
  round = jax.jit(make_round(sim.setting))
  exported = jax.export.export(round, platforms=[platform])(state, sim.population, *tiny.rooted(0))
  assert exported.platforms == (platform,) and 'func.func public @main' in exported.mlir_module()
  assert [x.shape for x in jax.tree.leaves(exported.out_avals)][:3] == [(), (3,), (5, 3)]
