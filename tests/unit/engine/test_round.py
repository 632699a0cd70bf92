"""A round whose sum is withheld changes nothing, not a bit: parameters, optimizer, any state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny
from reference.loop import plain_round

from fedjax_mem.core import Layer, Looks, Stage, compose
from fedjax_mem.optim import fedadam, fedavgm
from fedjax_mem.stages import privacy
from fedjax_mem.stages.algorithm import fedsgd
from fedjax_mem.stages.masks import mask
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import capped, equal

SIZE = tiny.FEATURES * tiny.CLASSES + tiny.CLASSES
OPTIMIZERS = {'momentum': fedavgm(0.5), 'adam': fedadam(0.1)}
# Shares of 8: released, nobody comes, too few, released, one too few.
GONE = ([], range(tiny.N), [0, 1, 2], [4, 5], [9, 2, 3])
RELEASED = [True, False, False, True, False]


def losing(select, gone):
  """Returns the sampler of all clients, of which those in `gone[round]` drop out."""
  stay = np.ones((len(gone), tiny.N), bool)
  for round, ids in enumerate(gone):
    stay[round, list(ids)] = False

  def change(ctx, cohort):
    stays = jnp.asarray(stay)[ctx.round, jnp.clip(cohort.id, 0, tiny.N - 1)]
    return cohort._replace(arrived=cohort.arrived & stays)

  return tiny.changed(select, change)


def counting():
  """Returns a layer both of whose sides count the rounds in which they were heard."""
  start = lambda ctx: jnp.int32(0)
  count = lambda ctx, message, state: (message, state + 1, {})
  return Layer('count', client=Stage(count, start), server=Stage(count, start))


def noisy(shares=8):
  return privacy.distributed(1.0, 0.5, shares=shares, clients=tiny.N, dimension=SIZE, bits=20)


@functools.cache
def simulation(optimizer='momentum', mode='vmap'):
  algorithm = fedsgd(tiny.loss, batch_size=16, server_optimizer=OPTIMIZERS[optimizer])
  select = losing(round_robin(tiny.N, tiny.N), GONE)
  cover = mask(clients=tiny.N, bits=20)
  round = compose(algorithm, select, equal(8.0), counting(), *noisy(), cover)
  return tiny.build(round, mode)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('optimizer', 'mode'), [('momentum', 'vmap'), ('adam', 'chunk on devices')]
)
def test_a_withheld_round_changes_no_bit(optimizer, mode):
  sim = simulation(optimizer, mode)
  state = tiny.host(sim.init(tiny.initial()))
  for round, released in enumerate(RELEASED):
    before = state
    device = jax.tree.map(jnp.asarray, before)
    state, metrics = tiny.execute(sim, 1, state=device)
    assert metrics['integer_noise/withheld'].tolist() == [not released]
    assert metrics['clients'].tolist() == [tiny.N - len(GONE[round])]
    assert metrics['finite'].all() and state.round == round + 1
    if released:
      assert (tiny.vec(state.params) != tiny.vec(before.params)).all()
      assert state.servers['count'] == before.servers['count'] + 1
      assert (tiny.vec(state.servers['algorithm']) != 0).any()
      came = [i for i in range(tiny.N) if i not in GONE[round]]
      assert (state.clients['count'] - before.clients['count']).nonzero()[0].tolist() == came
      continue
    # Only whom to select next goes on.
    rest = lambda s: {name: x for name, x in s.servers.items() if name != 'select'}
    tiny.assert_same_bits(state.params, before.params)
    tiny.assert_same_bits(rest(state), rest(before))
    tiny.assert_same_bits(state.clients, before.clients)


@pytest.mark.slow
def test_a_run_with_withheld_rounds_is_one_whose_optimizer_never_saw_them():
  """In one program of several rounds, and against the same rounds with nobody withheld between."""
  sim = simulation()
  state, metrics = tiny.execute(sim, len(GONE))
  assert metrics['integer_noise/withheld'].tolist() == [int(not x) for x in RELEASED]
  assert state.servers['count'] == sum(RELEASED)
  start, _ = tiny.execute(sim, 1)
  skipped = jax.tree.map(jnp.asarray, start)._replace(round=jnp.int32(3))
  again, _ = tiny.execute(sim, 1, state=skipped)
  tiny.assert_same_bits(again.params, state.params)
  tiny.assert_same_bits(again.servers['algorithm'], state.servers['algorithm'])


@pytest.mark.slow
def test_weights_are_not_sent():
  """Their sum would leave without noise, and tell how many examples a client has, or whether any.

  A client without examples sends noise as all others do: shares are counted by arrival.
  """
  select = round_robin(tiny.N, tiny.N)
  weigh = capped(5.0, divisor=8.0)
  sim = tiny.build(
    compose(tiny.algorithm(), select, weigh, *noisy(), mask(clients=tiny.N, bits=20))
  )
  empty = tiny.with_client(tiny.population(), 3, count=0)
  # What is masked.
  sent = plain_round(sim.setting.layers[:-1], sim.init(tiny.initial()), empty, tiny.SEED).messages
  assert [float(m.weight) for m in sent] == [1.0] * tiny.N
  assert all((np.asarray(m.update) != 0).any() for m in sent)


def test_a_select_side_that_looks_at_nothing_is_given_no_table():
  given_none = {}

  def looking(at):
    def select(ctx, draw, state):
      given_none[at] = ctx.table is None
      return draw, state, {}

    keeps = Stage(lambda ctx, m, s: (m, s, {}), lambda ctx: jnp.float32(0))
    return Layer('looks', select=Stage(select, facts=(Looks(at),)), client=keeps)

  for at in ('nothing', 'own data', "others' data"):
    tiny.build(tiny.layers(looking(at)))
  assert given_none == {'nothing': True, 'own data': False, "others' data": False}


@pytest.mark.slow
def test_a_client_is_not_told_who_else_will_arrive():
  def asks(ctx, message, state):
    same = (ctx.cohort.arrived == ctx.cohort.real).all()
    return message, state, {'told_nothing': same.astype(jnp.float32)}

  sim = tiny.build(tiny.layers(Layer('asks', client=Stage(asks))))
  _, metrics = tiny.execute(sim, 1)
  assert metrics['clients'][0] < metrics['selected'][0]  # somebody is lost
  assert metrics['asks/told_nothing'].tolist() == [1.0]
