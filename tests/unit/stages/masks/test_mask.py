"""Masks in the round: they cancel bit for bit, in every execution, whoever is missing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny
from reference.loop import plain_round

from fedjax_mem.core import Layer, Message, Stage, Trains, compose, tree
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.select import poisson, round_robin
from fedjax_mem.stages.weigh import by_examples, equal

BITS = 12


def exact(*message_layers, weigh=None, select=None):
  """Returns a round whose updates are small integers, NaN where a client's examples are.

  The numbers depend on nothing that two programs may round in two ways; aux is summed beside them.
  """

  def client(ctx, task, state):
    nothing = 0 * task.data.take(jnp.zeros(1, jnp.int32))['x'].sum()
    number = (ctx.client.id + ctx.round).astype(jnp.float32) + nothing
    update = jax.tree.map(lambda x: jnp.full_like(x, number), task.params)
    return Message(update, task.data.count.astype(jnp.float32), {'twice': 2 * number}), state, {}

  def server(ctx, message, state):
    new = tree.sub(ctx.params, message.update)
    seen = {'twice': message.aux['twice'], 'weight': message.weight}
    return new, state, seen

  algorithm = Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=Stage(server))
  select = tiny.rota() if select is None else select
  return compose(algorithm, select, equal(4.0) if weigh is None else weigh, *message_layers)


def whole(bits=BITS):
  """Returns integers whose steps are whole numbers: every update is on the grid."""
  levels = (2 ** (bits - 1) - 1) // tiny.C
  return integers(float(levels), clients=tiny.C, bits=bits)


def covered(bits=BITS, **kwargs):
  return whole(bits), mask(clients=tiny.C, bits=bits, **kwargs)


def same(one, two, layers=('select', 'integers', 'algorithm')):
  """Fails unless two runs agree in parameters, aux, weights and clients, bit for bit."""
  tiny.assert_same_bits(one[0].params, two[0].params)
  for name, value in two[1].items():
    if name in ('ids', 'not_finite'):  # of as many rows as the cohort is padded to
      continue
    if '/' not in name or name.startswith(layers):
      np.testing.assert_array_equal(one[1][name], value, err_msg=name)


@pytest.fixture(scope='module')
def plain():
  sim = tiny.build(exact(whole()))
  broken = tiny.with_client(tiny.population(), 2, x=jnp.nan)
  return {'sound': tiny.execute(sim), 'broken': tiny.execute(sim, pop=broken)}


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in ('loop', 'vmap on 2', 'loop on devices')]


@functools.cache
def simulation(mode='vmap'):
  return tiny.build(exact(*covered()), mode)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['vmap', 'chunk', 'chunk on devices', *SLOW])
def test_the_masked_sum_is_the_sum_in_every_execution(mode, plain):
  sim = simulation(mode)
  got = tiny.execute(sim)
  same(got, plain['sound'])
  assert np.abs(tiny.vec(got[0].params) - tiny.vec(tiny.initial())).max() > 1
  assert got[1]['mask/recovered'].tolist() == [2, 1, 2, 2]
  # A client that is not finite leaves no mask behind.
  got = tiny.execute(sim, pop=tiny.with_client(tiny.population(), 2, x=jnp.nan))
  same(got, plain['broken'])
  assert got[1]['not_finite'].max(1).tolist() == [2, -1, -1, 2]
  assert got[1]['mask/recovered'].tolist() == [3, 1, 2, 3]


@pytest.mark.slow
def test_more_pairs_than_clients_give_the_same(plain):
  same(tiny.execute(tiny.build(exact(*covered(degree=14)), 'chunk')), plain['sound'])


@pytest.mark.slow
def test_the_sum_is_that_of_numpy_with_weights_and_aux():
  """Weighted by examples: update, weight and aux all come out from under the masks."""
  top = 2**20
  grid = integers(float(top), clients=tiny.C, bits=32)
  sim = tiny.build(exact(grid, mask(clients=tiny.C, weight_range=256.0), weigh=by_examples()))
  state, metrics = tiny.execute(sim, 3)
  params = tiny.vec(tiny.initial())
  for t in range(3):
    ids = [(t * tiny.C + i) % tiny.N for i in range(tiny.C)]
    came = [i for i in ids if not tiny.is_lost(i, t)]
    n = np.array([tiny.COUNTS[i] for i in came], np.float64)
    number = np.array(came, np.float64) + t
    params = params - (n * number).sum() / n.sum()
    assert metrics['algorithm/weight'][t] == n.sum()
    np.testing.assert_allclose(
      metrics['algorithm/twice'][t], 2 * (n * number).sum() / n.sum(), rtol=1e-6
    )
  np.testing.assert_allclose(tiny.vec(state.params), params, rtol=1e-5)


@pytest.mark.devices(2)
@pytest.mark.slow
def test_cohorts_of_any_number_of_clients_that_take_part():
  """Poisson cohorts with padding, of one client and of none among them."""
  draw = lambda: poisson(tiny.N, 0.15, capacity=tiny.C)
  runs = [
    tiny.execute(tiny.build(exact(*x, select=draw()), mode), 8)
    for x, mode in (((whole(),), 'vmap'), (covered(), 'chunk on devices'))
  ]
  assert {0, 1} <= set(runs[0][1]['selected'].tolist())
  for got in runs[1:]:
    same(got, runs[0])


@pytest.mark.slow
def test_without_the_recovery_the_sum_is_anything(plain):
  layer = mask(clients=tiny.C, bits=BITS)

  def lazy(ctx, message, state):
    cohort = ctx.cohort._replace(arrived=ctx.cohort.real)
    return layer.server.apply(ctx._replace(cohort=cohort), message, state)

  sim = tiny.build(exact(whole(), layer._replace(server=Stage(lazy))))
  wrong = tiny.execute(sim)[0].params
  assert (tiny.vec(wrong) != tiny.vec(plain['sound'][0].params)).all()


@functools.cache
def heard(masked, round=0):
  """Returns the messages that leave the clients in a round."""
  sim = simulation() if masked else tiny.build(exact(whole()))
  state = sim.init(tiny.initial())._replace(round=jnp.int32(round))
  return plain_round(sim.setting.layers, state, sim.population, tiny.SEED).messages


@pytest.mark.slow
def test_every_leaf_is_masked_and_uses_the_bits_it_says():
  for a, b in zip(heard(False), heard(True), strict=True):
    for x, y in zip(jax.tree.leaves(b), jax.tree.leaves(a), strict=True):
      assert x.dtype == np.int32 and (np.asarray(x) != np.asarray(y)).mean() > 0.9
    values = tiny.vec(b.update)
    assert values.min() >= 0 and values.max() < 2**BITS
    assert abs(int(b.weight)) > 2**20 and abs(int(b.aux['twice'])) > 2**20


@pytest.mark.slow
def test_a_masked_message_looks_uniform():
  updates = {'a': np.zeros((3, 40_000), np.float32)}
  grid, cover = integers(1.0, clients=3, bits=8), mask(clients=3, bits=8)
  sim = given.build(updates, grid, cover)
  message = plain_round(
    sim.setting.layers, sim.init(tree.zeros(sim.params)), sim.population, 3
  ).messages[0]
  counts = np.bincount(np.asarray(message.update['a']), minlength=256)
  expected = 40_000 / 256
  assert ((counts - expected) ** 2 / expected).sum() < 350  # 255 degrees: p = 7e-5


@pytest.mark.slow
def test_masks_are_fresh_in_every_round_and_for_every_client():
  seen = [tuple(tiny.vec(m.update)) for t in (0, 1) for m in heard(True, t)]
  assert len(set(seen)) == len(seen) == 2 * tiny.C


@pytest.mark.slow
def test_a_weight_beyond_its_range_takes_no_part_and_is_counted():
  grid = integers(2.0**20, clients=tiny.C, bits=32)
  sim = tiny.build(
    exact(grid, mask(clients=tiny.C, weight_range=128.0), weigh=by_examples()), 'chunk'
  )
  # Round 1 sums clients 6, 8, 9, 0, 1, 2; 2 * 9 * 9 + 2 = 164 is more than 128.
  _, metrics = tiny.execute(sim, 2)
  ids = [[i for i in np.arange(6) + 6 * t if not tiny.is_lost(i % 10, t)] for t in range(2)]
  for t, row in enumerate(ids):
    aux = np.array([2 * (i % 10 + t) * tiny.COUNTS[i % 10] for i in row])
    assert metrics['mask/left_out'][t] == (aux > 128).sum()
    assert metrics['algorithm/weight'][t] == sum(
      tiny.COUNTS[i % 10] for i, a in zip(row, aux, strict=True) if a <= 128
    )
  assert metrics['mask/left_out'].sum() > 0


@pytest.mark.parametrize(
  'name, value',
  [('clients', 0), ('bits', 1), ('bits', 33), ('degree', 3), ('degree', 0), ('weight_range', 0.0)],
)
def test_bad_arguments_are_refused(name, value):
  with pytest.raises(ValueError, match=f'{name} must be .*got {value}'):
    mask(**({'clients': 4} | {name: value}))


@pytest.mark.slow
def test_one_client_alone():
  updates = {'a': np.full((1, 5), 3.0, np.float32)}
  grid = integers(2.0**11 - 1, clients=1, bits=12)
  sim = given.build(updates, grid, mask(clients=1, bits=12), select=round_robin(1, 1))
  assert given.sums(sim).tolist() == [[3.0] * 5]


@pytest.mark.slow
def test_weights_at_their_limit_have_room_for_their_sum():
  # Eight, a power of two: the sum is at the very end of what there is room for.
  updates = {'a': np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)}
  layers = (integers(1.0, clients=8, bits=32), mask(clients=8, weight_range=1.0))
  found = given.sums(given.build(updates, *layers, weigh=by_examples()))[0]  # one example each
  np.testing.assert_allclose(found, updates['a'].mean(0), atol=1e-6)
