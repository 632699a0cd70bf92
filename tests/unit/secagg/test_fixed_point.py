"""Floats as integers: exact on the step, never more than half a step off, never over the range."""

import numpy as np
import pytest

from fedjax_mem.secagg.fixed_point import FixedPoint


def code(**other):
  given = {
    'num_clients': 10,
    'update': 50,
    'aux': 2,
    'update_limit': 100.0,
    'weight_limit': 64.0,
    'aux_limit': 3.0,
  }
  return FixedPoint(**{**given, **other})


@pytest.mark.parametrize('bits', [16, 32, 64])
@pytest.mark.parametrize('n', [2, 10, 997])
def test_sums_are_within_half_a_step_a_client(bits, n):
  c = code(num_clients=n, bits=bits)
  rng = np.random.default_rng(n)
  updates, weights = rng.uniform(-1, 1, (n, 50)), rng.uniform(0, 64, n)
  auxes = rng.uniform(-3, 3, (n, 2))
  sent = [c.encode(p, w, a) for p, w, a in zip(updates, weights, auxes, strict=True)]
  assert all(x.dtype == np.int64 and x.shape == (53,) for x in sent)
  update, weight, aux = c.decode(np.sum(sent, axis=0))
  slack = 1 + 1e-6  # float64's own rounding
  for found, wanted, limit in (
    (update, (updates * weights[:, None]).sum(0), 100.0),
    (weight, weights.sum(), 64.0),
    (aux, auxes.sum(0), 3.0),
  ):
    off = n * max(c.step(limit) / 2 * slack, 1e-13 * limit)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=off)


@pytest.mark.parametrize('bits', [16, 32, 64])
def test_the_range_is_used_and_never_passed(bits):
  for n, limit in ((2, 1.0), (3, 0.7), (10, 100.0), (100, 2.0**20), (997, 1e-9)):
    c = code(num_clients=n, bits=bits, update_limit=limit)
    ends = np.full(50, limit)
    top = c.encode(ends, 1.0, np.zeros(2))[:50]
    assert top.max() <= c.bound
    assert n * c.bound < 2 ** (bits - 1)
    assert 4 * int(top.max()) > c.bound - 4
    np.testing.assert_array_equal(c.encode(-ends, 1.0, np.zeros(2))[:50], -top)
    step = c.step(limit)
    assert np.log2(step) == round(np.log2(step))


def test_multiples_of_the_step_are_exact():
  c = code()
  update = np.arange(-25, 25) * 1024 * c.step(100.0)
  total = c.encode(update, 3.0, [0.5, -1.0]) * 10
  got, weight, aux = c.decode(total)
  np.testing.assert_array_equal(got, update * 30)
  assert weight == 30.0
  assert aux.tolist() == [5.0, -10.0]


@pytest.mark.parametrize(
  ('update', 'weight', 'aux', 'problem'),
  [
    (np.full(50, 100.1), 1.0, np.zeros(2), 'update'),
    (np.full(50, 2.0), 51.0, np.zeros(2), 'update'),
    (np.full(50, np.nan), 1.0, np.zeros(2), 'update'),
    (np.full(50, -np.inf), 1.0, np.zeros(2), 'update'),
    (np.zeros(50), 64.5, np.zeros(2), 'weight'),
    (np.zeros(50), -1.0, np.zeros(2), 'weight'),
    (np.zeros(50), float('nan'), np.zeros(2), 'weight'),
    (np.zeros(50), 1.0, np.full(2, 3.1), 'aux'),
    (np.zeros(49), 1.0, np.zeros(2), 'update and aux'),
    (np.zeros(50), 1.0, np.zeros(3), 'update and aux'),
  ],
)
def test_what_is_out_of_range_is_refused(update, weight, aux, problem):
  with pytest.raises(ValueError, match=f'{problem}.* must be'):
    code().encode(update, weight, aux)


def test_a_sum_of_another_size_is_refused():
  for size in (52, 54):
    with pytest.raises(ValueError, match='total must be'):
      code().decode(np.zeros(size, np.int64))


@pytest.mark.parametrize(
  'wrong',
  [
    {'num_clients': 0},
    {'update': -1},
    {'aux': -1},
    {'aux_limit': 0.0},
    {'update_limit': 0.0},
    {'weight_limit': float('inf')},
    {'bits': 24},
    {'num_clients': 40_000, 'bits': 16},
  ],
)
def test_a_wrong_code_is_refused(wrong):
  with pytest.raises(ValueError, match='must be'):
    code(**wrong)
