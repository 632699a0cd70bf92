"""The contract that every codec keeps, in the tree or out of it.

`pytest tests/contract --codec package.module:factory` runs it on a factory of your own, which
returns a `Codec`, or a layer that states `Encodes`. Of a codec with `encode` and `decode` all is
asked; of one that only its layer can make, what shows in a round.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import suite
from reference import given

from fedjax_mem.core import Encodes, Layer, compose
from fedjax_mem.stages.compress import Codec, codec_of
from fedjax_mem.stages.compress import _base as codecs
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

N, SHAPES = 4, ((5, 11, 3), (64, 2), (7,))
D, DRAWS = codecs.size(SHAPES), 800
RNG = np.random.default_rng(5)
UPDATES = {str(i): RNG.normal(size=(N, *s)).astype(np.float32) for i, s in enumerate(SHAPES)}
IN_TREE = tuple(x for x in suite.IN_TREE['COMPRESSION'] if x != 'downlink')


def pytest_generate_tests(metafunc):
  if 'layer' not in metafunc.fixturenames:
    return
  chosen = metafunc.config.getoption('--codec')
  cases = suite.cases(chosen) if chosen else [suite.tree_case('COMPRESSION', x) for x in IN_TREE]
  if not chosen:
    own = ('one_bit:one_bit', 'one_bit:without_memory')
    cases += [suite.case(name, suite.example(name)) for name in own]
  metafunc.parametrize(
    'layer', [named.as_layer(c.make()) for c in cases], ids=[c.name for c in cases]
  )


def codec(layer):
  """Returns the codec of a layer, None if only its layer can make the code."""
  found = layer.fact(Encodes).codec
  return found if isinstance(found, Codec) else None


def vector(seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=D).astype(np.float32))


def keys(i=0):
  key = jax.random.fold_in(jax.random.key(3), i)
  return codecs.Keys(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))


def decoded(made, x, i=0):
  draws = keys(i)
  return made.decode(draws, made.encode(draws, x, SHAPES), SHAPES)


def test_it_states_what_it_is(layer):
  assert isinstance(layer, Layer)
  fact = layer.fact(Encodes)
  assert fact is not None, 'a codec states Encodes on the side that encodes'
  assert fact.codec.name and fact.codec.feedback != '' and fact.codec.adds in (False, True)
  assert not compose(given.algorithm(), round_robin(N, N), equal(), layer).silent


@pytest.mark.slow
def test_the_bytes_are_those_of_the_wire_and_survive_it(layer):
  made = codec(layer)
  if made is None:
    return
  code = made.encode(keys(), vector(), SHAPES)
  data = codecs.to_bytes(code, 2.5)
  assert len(data) == int(codecs.nbytes(codecs.parts_of(code)))
  back, weight = codecs.from_bytes(made, data, SHAPES)
  assert weight == 2.5
  np.testing.assert_array_equal(made.decode(keys(), back, SHAPES), decoded(made, vector()))
  with pytest.raises(ValueError):
    codecs.from_bytes(made, data[:-1], SHAPES)


@pytest.mark.slow
def test_zeros_are_zeros_and_what_is_not_finite_stays_so(layer):
  made = codec(layer)
  if made is not None:
    np.testing.assert_array_equal(decoded(made, jnp.zeros(D)), np.zeros(D))
  sim = given.build(UPDATES, layer, select=round_robin(N, N))
  broken = {k: v.copy() for k, v in UPDATES.items()}
  broken['0'][2, 1, 1, 1] = np.nan
  (released,), (metrics,), _ = given.play(sim, updates=broken)
  assert metrics['not_finite'].max() == 2 and metrics['clients'] == N - 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(released))


@pytest.mark.first(2)
def test_stated_errors_and_means_hold(layer):
  made = codec(layer)
  if made is None:
    return
  x = vector(1)
  many = np.asarray(jax.jit(jax.vmap(lambda i: decoded(made, x, i)))(jnp.arange(DRAWS)), np.float64)
  spread = ((many - np.asarray(x)) ** 2).sum(1)
  stated = made.error(SHAPES)
  if stated is not None:
    doubt = 4 * spread.std() / np.sqrt(DRAWS) + 1e-4
    assert spread.mean() <= stated * float(jnp.sum(x * x)) + doubt
  if made.unbiased:
    # What the mean of so many draws is off by, and the little that a fast rotation leaves.
    doubt = 2 * spread.mean() / DRAWS + 0.01 * float(jnp.sum(x * x))
    assert ((many.mean(0) - np.asarray(x)) ** 2).sum() <= doubt


@pytest.mark.first(2)
def test_codes_that_add_are_decoded_from_their_sum(layer):
  made = codec(layer)
  if made is None or not made.adds:
    return
  common = keys(0).round_key
  both = [codecs.Keys(keys(i).own, common) for i in (1, 2)]
  codes = [made.encode(d, vector(i), SHAPES) for i, d in enumerate(both)]
  whole = made.decode(both[0], codecs.Code((), codes[0].rest + codes[1].rest), SHAPES)
  parts = sum(made.decode(d, c, SHAPES) for d, c in zip(both, codes, strict=True))
  np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_round_reports_the_bytes_of_its_messages(layer):
  sim = given.build(UPDATES, layer, select=round_robin(N, N))
  _, (metrics,), _ = given.play(sim)
  total = codecs.total_bytes(metrics, 'bytes_up')
  assert total is not None and total > 0 and metrics[f'{layer.name}/ratio'] > 0
  made = codec(layer)
  if made is not None and not any(
    isinstance(p, codecs.wire.Indices)
    for p in codecs.parts_of(made.encode(keys(), vector(), SHAPES))
  ):
    code = codecs.parts_of(made.encode(keys(), vector(), SHAPES))
    assert total == N * int(codecs.nbytes(code))


@pytest.mark.slow
@pytest.mark.first(2)
def test_error_feedback_is_for_those_that_send_less_error_than_they_are_given(layer):
  from fedjax_mem.stages.compress import error_feedback

  if layer.client is None or layer.fact(Encodes).codec.feedback:
    with pytest.raises(ValueError, match='codec must'):
      error_feedback(layer)
    return
  sim = given.build(UPDATES, error_feedback(layer), select=round_robin(N, N))
  sent = given.sums(sim, 30)
  # Over rounds all of it arrives, but for what is remembered at the end.
  whole = np.concatenate([v.sum(0).ravel() for v in UPDATES.values()])
  first, last = (np.linalg.norm(sent[:k].mean(0) - whole) for k in (1, 30))
  assert last < 0.5 * first + 1e-3


def test_what_does_not_encode_is_told():
  with pytest.raises(ValueError, match='codec must be a codec'):
    codec_of(codec=equal())
