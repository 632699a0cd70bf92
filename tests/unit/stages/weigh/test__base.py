"""Weighings: what a client multiplies and what the server divides by."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import Bound, Bounds, Context, Member, Message, Weighs, tree
from fedjax_mem.stages.weigh import by_examples, capped, equal, given

NONE = Context(*[None] * len(Context._fields))
EXAMPLES = np.array([0, 1, 4, 8, 12], np.float32)
UPDATES = np.arange(10, dtype=np.float32).reshape(5, 2) - 3


def both_halves(layer, examples=EXAMPLES):
  """Returns the server's message after the clients' are summed."""
  sent = []
  for i, (n, x) in enumerate(zip(examples, UPDATES, strict=False)):
    message = Message({'x': jnp.asarray(x)}, jnp.float32(n), {'bit': jnp.float32(x[0])})
    ctx = NONE._replace(client=Member(jnp.int32(i), None, None, None))
    sent.append(layer.client.apply(ctx, message, ())[0])
  whole = sent[0]
  for message in sent[1:]:
    whole = tree.add(whole, message)
  return layer.server.apply(NONE, whole, ())[0]


OWN = np.array([7.0, 0.5, 3.0, 1.0, 2.0])
CASES = {
  'examples': (by_examples(), EXAMPLES, None),
  'equal': (equal(), (EXAMPLES > 0).astype(float), None),
  'capped': (capped(8), np.minimum(EXAMPLES / 8, 1), None),
  'equal, fixed': (equal(7.0), (EXAMPLES > 0).astype(float), 7.0),
  'given': (given(OWN), np.where(EXAMPLES > 0, OWN, 0), None),
  'capped, fixed': (capped(8, 2.5), np.minimum(EXAMPLES / 8, 1), 2.5),
}


@pytest.mark.parametrize('name', CASES)
def test_the_mean_is_weighted(name):
  layer, weights, divisor = CASES[name]
  out = both_halves(layer)
  by = weights.sum() if divisor is None else divisor
  np.testing.assert_allclose(out.update['x'], weights @ UPDATES / by, rtol=1e-6)
  np.testing.assert_allclose(out.aux['bit'], weights @ UPDATES[:, 0] / by, rtol=1e-6)
  assert float(out.weight) == pytest.approx(by)
  assert layer.fact(Weighs).divisor == divisor


@pytest.mark.parametrize('name', CASES)
def test_nobody_arrived(name):
  layer, _, divisor = CASES[name]
  out = both_halves(layer, np.zeros(5, np.float32))
  assert np.asarray(out.update['x']).tolist() == [0, 0]
  assert float(out.weight) == (divisor or 0)


def test_what_a_bound_is_worth_after_weighing():
  bound = Bound(l2=2.0)
  assert by_examples().client.fact(Bounds) is None  # the number of examples is not bounded
  for layer in (equal(), capped(3)):
    assert layer.client.fact(Bounds).of(None, bound) == bound


@pytest.mark.parametrize('bad', (0, -1, float('nan'), float('inf'), 'x'))
def test_bad_numbers(bad):
  with pytest.raises(ValueError, match='cap must be a finite number > 0, got'):
    capped(bad)
  for make in (equal, lambda divisor: capped(1, divisor)):
    with pytest.raises(ValueError, match='divisor must be a finite number > 0, got'):
      make(bad)


def test_given_weights_are_one_a_client_and_known_together():
  assert given([1.5, 2.5]).fact(Weighs).total == 4 and given([1.5]).fact(Weighs).of is None
  assert given([1.0]).client.fact(Bounds) is None
  for bad, got in (
    (None, 'neither'),
    ([1.0, 0.0], 'client 1'),
    ([[1.0]], r'\[\[1.0\]\]'),
    ('a', 'a'),
  ):
    with pytest.raises(ValueError, match=f'weights must be .*{got}'):
      given(bad)
  with pytest.raises(ValueError, match='weights must be 3, one a client, got 2'):
    given([1.0, 2.0], num_clients=3)
