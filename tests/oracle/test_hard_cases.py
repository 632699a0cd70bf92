"""The protocol carries the hard cases: each equals a NumPy loop, however it is executed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import suite
from reference import stages, tiny, twins
from reference.loop import plain_round

from fedjax_mem.core import Layer, Message, Stage, Trains, compose, tree
from fedjax_mem.stages.select import dropout, uniform
from fedjax_mem.stages.weigh import equal

ASK = suite.ARGUMENTS
# name -> (rounds -> (parameters, own state or None), where that state is, largest difference)
TWINS = {
  'scaffold': (
    lambda t: twins.scaffold(t, ASK['learning_rate'], ASK['steps']),
    ('clients', 'algorithm'),
    5e-6,
  ),
  'top_k': (lambda t: twins.top_k(t, ASK['fraction']), ('clients', 'compress'), 5e-6),
  'secure_sum': (lambda t: (twins.fixed_point(t, ASK['bits']), None), None, 2.0 ** -ASK['bits']),
  'median': (lambda t: (twins.linear(t, lambda u: np.median(u, 0)), None), None, 5e-6),
  'krum': (lambda t: (twins.linear(t, lambda u: twins.krum(u, 0)), None), None, 5e-6),
  'label_flip': (lambda t: (twins.linear(t, flipped=ASK['attackers']), None), None, 5e-6),
  'importance': (
    lambda t: twins.importance(t, ASK['expected'], ASK['capacity']),
    ('clients', 'select'),
    5e-6,
  ),
  'adaptive_clip': (
    lambda t: twins.adaptive_clip(t, ASK['bound'], ASK['multiplier'], ASK['expected']),
    ('servers', 'privacy'),
    5e-6,
  ),
}
CASES = {c.name.removeprefix('test-'): c for c in suite.test_only()}
SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in ('loop on devices', 'vmap on 2', 'loop')]


def test_every_hard_case_has_a_twin():
  assert set(CASES) == set(TWINS)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['vmap', 'chunk', 'chunk on devices', *SLOW])
@pytest.mark.parametrize('name', TWINS)
def test_equals_the_numpy_loop(name, mode):
  twin, where, atol = TWINS[name]
  state, _ = suite.run(CASES[name], mode)
  params, own = twin(tiny.ROUNDS)
  assert np.abs(params - twins.START).max() > 0.05
  np.testing.assert_allclose(tiny.vec(state.params), params, rtol=0, atol=atol)
  if where:
    leaves = jax.tree.leaves(getattr(state, where[0])[where[1]])
    kept = [x.reshape(*np.shape(own)[:1], -1) for x in leaves]  # the twin's [N, D] or a scalar
    kept = np.concatenate(kept, axis=-1).reshape(np.shape(own))
    np.testing.assert_allclose(kept, own, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize('name', TWINS)
def test_resumed_equals_uninterrupted(name):
  sim = suite.simulation(CASES[name], 'chunk')
  half, _ = tiny.execute(sim, 2)
  resumed, _ = tiny.execute(sim, tiny.ROUNDS - 2, state=jax.device_put(half))
  tiny.assert_same_bits(resumed, suite.run(CASES[name], 'chunk')[0])


def exact_round(*message_layers):
  """Returns a round whose updates are small integers, NaN where a client's examples are.

  Rounding a float update may fall to either side in two programs; here nothing is rounded.
  """

  def client(ctx, task, state):
    nothing = 0 * task.data.take(jnp.zeros(1, jnp.int32))['x'].sum()
    number = (ctx.client.id + ctx.round).astype(jnp.float32) + nothing
    update = jax.tree.map(lambda x: jnp.full_like(x, number), task.params)
    return Message(update, jnp.float32(1), {}), state, {}

  server = Stage(lambda ctx, m, state: (tree.sub(ctx.params, m.update), state, {}))
  algorithm = Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=server)
  return compose(algorithm, tiny.rota(), equal(4.0), *message_layers)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ('vmap', 'chunk on devices'))
def test_masks_cancel_bit_for_bit_and_are_recovered(mode):
  plain = tiny.build(exact_round(stages.fixed_point(12)))
  masked = tiny.build(exact_round(*stages.secure_sum(12)), mode)
  state, metrics = tiny.execute(masked)
  tiny.assert_same_bits(state.params, tiny.execute(plain)[0].params)
  assert metrics['mask/recovered'].tolist() == [2, 1, 2, 2]
  # A client that is not finite leaves no mask behind.
  broken = tiny.with_client(tiny.population(), 2, x=jnp.nan)
  state, metrics = tiny.execute(masked, pop=broken)
  tiny.assert_same_bits(state.params, tiny.execute(plain, pop=broken)[0].params)
  assert metrics['not_finite'].max(1).tolist() == [2, -1, -1, 2]
  assert metrics['mask/recovered'].tolist() == [3, 1, 2, 3]


@pytest.mark.slow
def test_a_masked_message_looks_nothing_like_the_plain_one():
  def heard(*message_layers):
    round = tiny.layers(*message_layers)
    sim = tiny.build(round)
    return plain_round(round, sim.init(tiny.initial()), sim.population, tiny.SEED).messages

  plain, masked = heard(stages.fixed_point(12)), heard(*stages.secure_sum(12))
  for a, b in zip(plain, masked, strict=True):
    assert all((x != y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert np.abs(tiny.vec(b)).max() > 2**28


@pytest.mark.devices(2)
@pytest.mark.slow
def test_everything_at_once_is_the_same_in_chunks_on_devices_and_resumed():
  round = compose(
    stages.label_flip(4, tiny.CLASSES),
    stages.scaffold(tiny.loss, learning_rate=0.3, steps=2, num_clients=tiny.N),
    (uniform(tiny.N, tiny.C), dropout(0.2)),
    equal(),
    stages.adaptive_clip(1.0, 0.1, 4.0),
    stages.top_k(0.5),
    *stages.secure_sum(14),
  )
  sims = [tiny.build(round, mode) for mode in ('vmap', 'chunk on devices')]
  whole = [tiny.execute(sim)[0] for sim in sims]
  tiny.assert_close(*whole, atol=2e-4)  # a rounding may fall to the other side
  half, _ = tiny.execute(sims[0], 1)
  again, _ = tiny.execute(sims[0], tiny.ROUNDS - 1, state=jax.device_put(half))
  tiny.assert_same_bits(again, whole[0])
