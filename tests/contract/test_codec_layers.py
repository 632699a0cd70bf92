"""Codecs in a round: bytes as the wire counts them, feedback, low rank, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny, twins

from fedjax_mem.core import IncompatibleStages, Layer, Stage, compose, keys, tree, wire
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine import simulate
from fedjax_mem.kernels.codes import low_rank as kernel
from fedjax_mem.stages import compress
from fedjax_mem.stages.compress import _base as codecs
from fedjax_mem.stages.compress._base import unbounded as unbounded
from fedjax_mem.stages.select import round_robin

rng = np.random.default_rng(8)
N = 6
UPDATES = {
  'a': rng.normal(size=(N, 40)).astype(np.float32) ** 3,
  'b': rng.normal(size=(N, 8, 9)).astype(np.float32) ** 3,
}
SHAPES = ((40,), (8, 9))
TOP = {'use': 'top_k', 'k': 11}
CODECS = {
  'top_k': lambda: compress.top_k(k=11),
  'random_k': lambda: compress.random_k(0.3),
  'eden': lambda: compress.eden(2, block=64),
  'top_k, quantize': lambda: compress.chain(TOP, compress.quantize(4)),
}


def flat(client):
  return np.concatenate([UPDATES['a'][client], UPDATES['b'][client].ravel()])


def draws(name, client, round=0):
  base = keys.layer_key(keys.seed_key(np.uint32(3)), np.int32(round), name)
  return codecs.Keys(keys.role_key(base, 'client', client), keys.role_key(base, 'round'))


# What a side beside a code states, that says no more than that it does not encode.
UNBOUNDED = unbounded('a test')
SLOW = lambda names: [pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['random_k', 'top_k, quantize', *SLOW(['top_k', 'eden'])])
def test_a_round_counts_the_bytes_of_the_wire_and_sums_what_it_carries(name):
  layer = CODECS[name]()
  codec = compress.codec_of(codec=layer)
  encode = jax.jit(lambda d, x: codec.encode(d, x, SHAPES))
  decode = jax.jit(lambda d, c: codec.decode(d, c, SHAPES))
  released, (metrics,), _ = given.play(given.build(UPDATES, layer))
  size, total = 0, np.zeros(112)
  for client in range(N):
    d = draws(layer.name, client)
    data = codecs.to_bytes(encode(d, flat(client)), 1.0)
    size += len(data)
    code, _ = codecs.from_bytes(codec, data, SHAPES)
    total += np.asarray(decode(d, code), np.float64)
  assert compress.total_bytes(metrics, 'bytes_up') == size
  np.testing.assert_allclose(tiny.vec(released[0]), total, rtol=1e-5, atol=1e-5)
  dense = len(wire.encode(1.0, [wire.Floats(flat(0))]))
  np.testing.assert_allclose(metrics[f'{layer.name}/ratio'], N * dense / size, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['top_k', 'random_k'])
def test_what_is_sent_beside_the_update_is_counted(name):
  client = lambda ctx, message, state: (message._replace(aux={'x': jnp.ones(3)}), state, {})
  server = lambda ctx, message, state: (message._replace(aux={}), state, {})
  beside = Layer('beside', client=Stage(client, facts=(UNBOUNDED,)), server=Stage(server))
  sizes = []
  for layers in ((CODECS[name](),), (beside, CODECS[name]())):
    _, (metrics,), _ = given.play(given.build(UPDATES, *layers))
    sizes.append(compress.total_bytes(metrics, 'bytes_up'))
  assert sizes[1] - sizes[0] == N * (wire.PART + 3 * 4)


def test_bytes_beyond_32_bits_are_exact():
  rows = {'x/bytes_up_high': np.int32([2**20]), 'x/bytes_up_low': np.int32([7])}
  rows |= {'y/bytes_up_high': np.int32([1]), 'y/bytes_up_low': np.int32([1])}
  assert compress.total_bytes(rows, 'bytes_up').tolist() == [2**36 + 2**16 + 8]
  assert compress.total_bytes(rows, 'bytes_down') is None


FEEDBACK = {
  'top_k': lambda: compress.error_feedback(TOP),
  'random_k': lambda: compress.error_feedback(compress.random_k(0.3, unbiased=False)),
  'low_rank': lambda: compress.low_rank(2),
  'low_rank, shared': lambda: compress.low_rank(2, warm='shared'),
  'power_sgd': lambda: compress.power_sgd(2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['top_k', 'power_sgd', *SLOW(['random_k', 'low_rank', 'low_rank, shared'])]
)
def test_under_feedback_nothing_is_lost_and_a_resumed_run_is_the_same_bit_for_bit(name):
  """Three of six clients a round: what was sent and what is remembered are all that was trained."""
  simulation = lambda: given.build(UPDATES, FEEDBACK[name](), select=round_robin(N, 3))
  sim = simulation()
  released, _, state = given.play(sim, 4)
  sent = sum(tiny.vec(x) for x in released)
  memory = state.clients[
    next(n for n in state.clients if n not in ('algorithm', 'select', 'weigh'))
  ]
  memory = memory if name == 'power_sgd' else memory[0]
  left = np.concatenate([memory['a'].reshape(N, -1), memory['b'].reshape(N, -1)], 1)
  trained = 2 * sum(flat(i).astype(np.float64) for i in range(N))
  np.testing.assert_allclose(sent + left.sum(0), trained, rtol=1e-5, atol=1e-4)
  assert np.abs(left).max() > 0.1
  _, _, half = given.play(sim, 2)
  other = simulation()  # a new process would build all of it anew
  again, _, last = given.play(other, 2, state=half)
  tiny.assert_same_bits(last, state)
  tiny.assert_same_bits(again, released[2:])


@pytest.mark.slow
def test_error_feedback_equals_its_numpy_twin():
  _, _, state = given.play(given.build(UPDATES, compress.error_feedback(TOP)), 3)
  for client in range(N):
    memory = np.zeros(112, np.float32)
    for _ in range(3):
      whole = flat(client) + memory
      kept = np.argsort(-np.abs(whole), kind='stable')[:11]
      memory = whole.copy()
      memory[kept] = 0
    found = state.clients['error_feedback'][0]
    np.testing.assert_allclose(found['a'][client], memory[:40], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found['b'][client].ravel(), memory[40:], rtol=1e-6, atol=1e-6)


def orthonormal(p):
  q, r = np.linalg.qr(p)
  return q * np.sign(np.diag(r))


@pytest.mark.slow
def test_low_rank_equals_its_numpy_twin_and_counts_its_factors():
  released, seen, state = given.play(given.build(UPDATES, compress.low_rank(2)), 3)
  key = keys.layer_key(keys.seed_key(np.uint32(3)), 0, 'low_rank')
  memory, start = np.zeros((N, 8, 9)), {}
  for i in range(N):
    own = jax.random.fold_in(keys.role_key(key, 'client_init', i), 1)
    start[i] = np.asarray(kernel.start(own, 9, 2), np.float64)
  for out in released:
    total = np.zeros((8, 9))
    for i in range(N):
      m = UPDATES['b'][i] + memory[i]
      p = orthonormal(m @ start[i])
      start[i] = m.T @ p
      memory[i] = m - p @ start[i].T
      total += p @ start[i].T
    np.testing.assert_allclose(out['b'], total, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(out['a'], UPDATES['a'].sum(0), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(state.clients['low_rank'][0]['b'], memory, rtol=1e-3, atol=1e-3)
  one = len(wire.encode(1.0, [wire.Floats(np.zeros(40 + 2 * (8 + 9)))]))
  assert compress.total_bytes(seen[0], 'bytes_up') == N * one


@pytest.mark.slow
def test_power_sgd_equals_its_numpy_twin_and_counts_both_exchanges():
  released, seen, state = given.play(given.build(UPDATES, compress.power_sgd(2)), 3)
  key = keys.layer_key(keys.seed_key(np.uint32(3)), 0, 'power_sgd')
  init = jax.random.fold_in(keys.role_key(key, 'init'), 1)
  q, memory = np.asarray(kernel.start(init, 9, 2), np.float64), np.zeros((N, 8, 9))
  for out in released:
    m = UPDATES['b'] + memory
    p = orthonormal(m.sum(0) @ q)
    each = np.einsum('cab,ar->cbr', m, p)
    q = each.sum(0)
    memory = m - np.einsum('ar,cbr->cab', p, each)
    np.testing.assert_allclose(out['b'], p @ q.T, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(state.servers['power_sgd']['1'], q, rtol=1e-3, atol=1e-3)
  size = lambda n: len(wire.encode(1.0, [wire.Floats(np.zeros(n))]))
  assert compress.total_bytes(seen[0], 'bytes_up') == N * (size(2 * 8) + size(40 + 2 * 9))
  assert compress.total_bytes(seen[0], 'bytes_more_down') == N * (size(2 * 9) + size(2 * 8))


@pytest.mark.slow
def test_arrays_for_which_rank_does_not_pay_are_sent_as_they_are():
  released, _, _ = given.play(given.build(UPDATES, compress.low_rank(5)))
  np.testing.assert_allclose(released[0]['b'], UPDATES['b'].sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_clients_start_from_what_they_are_sent_and_the_server_keeps_its_parameters():
  layer = compress.downlink({'use': 'quantize', 'bits': 3, 'stochastic': False, 'block': None})
  sim = tiny.build(compose(layer, tiny.algorithm(twins.RATE), tiny.rota(), tiny.equal()))
  state, metrics = tiny.execute(sim, 1)
  codec = compress.codec_of(codec=compress.quantize(3, stochastic=False, block=None))
  x, shapes = codecs.flat(tiny.initial())
  code = codec.encode(codecs.Keys(None, None), x, shapes)
  sent = np.asarray(codec.decode(None, code, shapes), np.float64)
  assert np.abs(sent - twins.START).max() > 0.01
  _, came = twins.rota(0)
  mean = np.mean([twins.of(i, sent) for i in came], 0)
  np.testing.assert_allclose(tiny.vec(state.params), twins.START - twins.RATE * mean, atol=1e-6)
  (down,) = compress.total_bytes(metrics, 'bytes_down')
  assert down == len(codecs.to_bytes(code, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['loop on devices', *SLOW(['chunk on devices', 'loop'])])
def test_every_execution_gives_the_same(mode):
  make = lambda mode: given.build(
    UPDATES, FEEDBACK['top_k'](), select=round_robin(N, 4), execution=mode
  )
  (expected, seen, before), (got, also, after) = (given.play(make(m), 3) for m in ('vmap', mode))
  np.testing.assert_allclose(
    [tiny.vec(x) for x in got], [tiny.vec(x) for x in expected], rtol=1e-5, atol=1e-5
  )
  tiny.assert_close(after.clients, before.clients)
  for a, b in zip(also, seen, strict=True):
    assert compress.total_bytes(a, 'bytes_up') == compress.total_bytes(b, 'bytes_up')


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['loop on devices', *SLOW(['chunk on devices'])])
def test_rows_exchanged_a_few_at_a_time_are_those_exchanged_at_once(mode, monkeypatch):
  build = lambda: given.build(
    UPDATES, FEEDBACK['top_k'](), select=round_robin(N, 4), execution=mode
  )
  _, _, at_once = given.play(build(), 3)
  monkeypatch.setattr(cohorts, 'EXCHANGED', 1)
  _, _, in_turn = given.play(build(), 3)
  assert jax.tree.leaves(at_once.clients)
  tiny.assert_same_bits(in_turn.clients, at_once.clients)


# Edges.


def spoiled(client):
  """Returns a layer in which the update of one client becomes NaN, in one value."""

  def apply(ctx, message, state):
    first = message.update['a']
    bad = jnp.where((ctx.client.id == client) & (jnp.arange(40) == 5), jnp.float32(jnp.nan), first)
    return message._replace(update=message.update | {'a': bad}), state, {}

  return Layer('spoiled', client=Stage(apply, facts=(UNBOUNDED,)))


@pytest.mark.slow
@pytest.mark.parametrize(
  'layer',
  [
    compress.random_k(k=1),
    *SLOW([compress.error_feedback({'use': 'top_k', 'k': 1}), compress.sign()]),
    compress.power_sgd(2),
  ],
  ids=lambda layer: layer.name,
)
def test_a_client_whose_update_is_not_finite_is_left_out_even_if_that_value_is_not_sent(layer):
  sim = given.build(UPDATES, spoiled(2), layer)
  released, (metrics,), state = given.play(sim)
  assert metrics['not_finite'].tolist() == [-1, -1, 2, -1, -1, -1]
  assert np.isfinite(tiny.vec(released[0])).all() and metrics['clients'] == N - 1
  table = jax.tree.leaves(state.clients[layer.name])
  assert all((x[2] == 0).all() for x in table)
  others = {k: np.delete(v, 2, 0) for k, v in UPDATES.items()}
  if layer.name == 'power_sgd':
    alone, _, _ = given.play(given.build(others, layer))
    np.testing.assert_allclose(tiny.vec(released[0]), tiny.vec(alone[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('warm', ['client', *SLOW(['shared'])])
def test_a_matrix_that_is_not_finite_spoils_no_factor_of_others(warm):
  """Low rank has no check of its own: its factors must tell."""

  def apply(ctx, message, state):
    b = message.update['b']
    spoiled = jnp.where(ctx.client.id == 2, b.at[3, 4].set(jnp.inf), b)
    return message._replace(update=message.update | {'b': spoiled}), state, {}

  layer = compress.low_rank(2, warm=warm)
  sim = given.build(UPDATES, Layer('spoiled', client=Stage(apply, facts=(UNBOUNDED,))), layer)
  released, metrics, state = given.play(sim, 2)
  for seen in metrics:
    assert seen['not_finite'].tolist() == [-1, -1, 2, -1, -1, -1]
  assert np.isfinite(tiny.vec(released[1])).all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.clients, state.servers)))


@pytest.mark.slow
def test_the_leaves_get_their_types_back():
  halves = {k: v.astype(jnp.bfloat16) for k, v in UPDATES.items()}
  for layer in (compress.quantize(8), compress.error_feedback(TOP), compress.random_k(0.5)):
    released, _, state = given.play(given.build(halves, layer))
    assert {x.dtype for x in released[0].values()} == {np.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(state.clients)} <= {np.dtype('float32')}


# What is refused.


@pytest.mark.slow
@pytest.mark.parametrize('make', [compress.top_k, compress.random_k])
def test_how_many_values(make):
  for bad in (0, -1, 2.0, True):
    with pytest.raises(ValueError, match=f'k must be an integer >= 1, got {bad!r}'):
      make(k=bad)
  for bad in (0.0, 1.5):
    with pytest.raises(ValueError, match=rf'fraction must be a number in \(0, 1\], got {bad!r}'):
      make(bad)
  for bad in ({}, {'k': 3, 'fraction': 0.5}):
    with pytest.raises(ValueError, match='either k or fraction must be given'):
      make(**bad)
  with pytest.raises(ValueError, match='k must be at most the 112 values of an update, got 113'):
    given.build(UPDATES, make(k=113))
  given.build(UPDATES, make(k=112))


@pytest.mark.slow
def test_k_of_each_array_is_refused_if_no_array_has_so_many():
  with pytest.raises(ValueError, match='k must be at most the 72 values'):
    given.build(UPDATES, compress.top_k(k=73, per_leaf=True))
  given.build(UPDATES, compress.top_k(k=72, per_leaf=True))


def test_integer_leaves():
  whole = UPDATES | {'n': np.ones((N, 3), np.int32)}
  for layer in (compress.sign(), compress.error_feedback(TOP), compress.power_sgd()):
    with pytest.raises(IncompatibleStages, match=r'encodes arrays of floats.*int32\[3\]'):
      given.build(whole, layer)
  with pytest.raises(IncompatibleStages, match=r"'downlink' encodes arrays of floats.*int32"):
    round = compose(compress.downlink(), given.algorithm(), round_robin(N, N), tiny.equal())
    simulate(round, {k: v[0] for k, v in whole.items()}, given.population(whole))


@pytest.mark.parametrize(
  'codec, told',
  [
    (compress.random_k(0.5), 'unbiased = false'),
    ({'use': 'quantize', 'bits': 1}, 'one bit rounded at random'),
    ('ternary', 'give it a clip'),
    (compress.chain(TOP, 'ternary'), 'give it a clip'),
    (compress.error_feedback(TOP), "got 'error_feedback'"),
    (compress.low_rank(), "got 'low_rank'"),
    (tiny.equal(), "got 'weigh'"),
    ('top_kk', "Did you mean 'top_k'"),
    ({'use': 'top_k', 'fractoin': 0.5}, r'codec.fractoin must be among .*Did you mean .fraction'),
    ({'use': 'chain', 'first': TOP}, "codec.second must be given for 'chain'"),
    ({'fraction': 0.5}, 'codec must be a codec, its name, or a table'),
    (7, 'codec must be a codec, its name, or a table .* got 7'),
  ],
)
def test_what_cannot_be_under_error_feedback(codec, told):
  with pytest.raises(ValueError, match=told):
    compress.error_feedback(codec)


def test_what_cannot_be_chained_or_sent_down():
  with pytest.raises(
    ValueError, match=r'first must be a codec that leaves values.*rotate, got .sign'
  ):
    compress.chain('sign', 'eden')
  with pytest.raises(ValueError, match=r'second must be a codec .* without error feedback'):
    compress.chain('rotate', compress.error_feedback(TOP))
  with pytest.raises(ValueError, match=r'codec must be a codec .* without error feedback'):
    compress.downlink(compress.low_rank())
  with pytest.raises(ValueError, match='k must be at most the 11 values'):
    given.build(UPDATES, compress.chain(TOP, {'use': 'random_k', 'k': 12}))


@pytest.mark.parametrize('make', [compress.rotate, compress.drive, compress.eden])
def test_blocks_are_powers_of_two(make):
  with pytest.raises(ValueError, match='block must be a power of two, got 12'):
    make(block=12)


@pytest.mark.slow
def test_weight_zero_sends_nothing_and_keeps_its_memory():
  sim = given.build(UPDATES, compress.error_feedback(TOP))
  _, seen, state = given.play(sim)
  silent = tiny.with_client(sim.population, 1, count=0)
  state, metrics, _ = sim.segment(tree.copy(state), silent, *tiny.rooted(3), np.int32(1))
  up = compress.total_bytes({k: np.array(v) for k, v in metrics.open(1).items()}, 'bytes_up')[0]
  assert 0 < up < compress.total_bytes(seen[0], 'bytes_up')
