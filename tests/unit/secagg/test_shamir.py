"""Shamir's sharing: any t shares restore, fewer say nothing, and wrong indices are refused."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fedjax_mem.secagg import primitives, shamir
from fedjax_mem.secagg.errors import ProtocolError

SECRETS = [bytes(range(32)), b'\xff' * 32, bytes(32)]


def twin(holders, values):
  """Returns the polynomial's value at zero, in Python's integers."""
  total = 0
  for i, value in zip(holders, values, strict=True):
    top = bottom = 1
    for j in holders:
      if j != i:
        top, bottom = top * (j + 1), bottom * (j - i)
    total += int(value) * top * pow(bottom, -1, shamir.PRIME)
  return total % shamir.PRIME


def test_every_set_of_t_shares_restores():
  holders = np.array([0, 3, 4, 9, 2**20])
  shares = shamir.split(SECRETS, 3, holders)
  assert shares.shape == (5, 3, shamir.LIMBS)
  assert shares.dtype == np.uint32
  for rows in itertools.combinations(range(5), 3):
    rows = list(rows)
    assert shamir.restore(holders[rows], shares[rows]) == SECRETS
  assert shamir.restore(holders, shares) == SECRETS


@pytest.mark.parametrize('threshold', [1, 2, 7, 40])
def test_equals_python_integers(threshold):
  holders = np.arange(40)[::-1][:threshold] * 3
  shares = shamir.split([SECRETS[0]], threshold, holders)
  limbs = [twin(holders.tolist(), shares[:, 0, i]) for i in range(shamir.LIMBS)]
  joined = b''.join(limb.to_bytes(3, 'little') for limb in limbs)
  assert joined[:32] == SECRETS[0]


def test_fewer_shares_restore_nothing():
  holders = np.arange(5)
  shares = shamir.split([SECRETS[1]], 3, holders)
  with pytest.raises(ProtocolError, match='fit together'):
    shamir.restore(holders[:2], shares[:2])


@pytest.mark.parametrize('secret', [bytes(32), b'\xff' * 32])
def test_t_minus_one_shares_are_uniform_whatever_the_secret(monkeypatch, secret):
  stream = np.random.default_rng(7)
  monkeypatch.setattr(primitives, 'random_bytes', stream.bytes)
  shares = shamir.split([secret] * 4000, 3, np.array([0, 1, 5]))[:2]
  for held in shares.reshape(2, -1):
    counts = np.histogram(held, 64, (0, shamir.PRIME))[0]
    assert stats.chisquare(counts).pvalue > 1e-4
  both = shares.reshape(2, -1).astype(np.float64)
  assert abs(np.corrcoef(both)[0, 1]) < 5 / np.sqrt(both.shape[1])


@pytest.mark.parametrize(
  ('holders', 'problem'),
  [
    ([0, 1, 1], 'distinct'),
    ([0, 1, -1], 'out of range'),
    ([0, 1, 2**31 - 2], 'out of range'),
    ([0, 1, 2**40], 'out of range'),
    ([], 'list of clients'),
  ],
)
def test_indices_twice_or_out_of_range_are_refused(holders, problem):
  shares = np.zeros((len(holders), 1, shamir.LIMBS), np.uint32)
  with pytest.raises(ProtocolError, match=problem):
    shamir.restore(np.array(holders, np.int64), shares)
  with pytest.raises(ProtocolError, match=problem):
    shamir.split([bytes(32)], 1, np.array(holders, np.int64))


@pytest.mark.parametrize('threshold', [0, 4])
def test_a_threshold_that_is_no_number_of_holders_is_refused(threshold):
  with pytest.raises(ProtocolError, match='threshold must be'):
    shamir.split([bytes(32)], threshold, np.arange(3))


def test_shares_outside_the_field_are_refused():
  shares = shamir.split([bytes(32)], 2, np.arange(2))
  shares[0, 0, 0] = shamir.PRIME
  with pytest.raises(ProtocolError, match='field'):
    shamir.restore(np.arange(2), shares)
  with pytest.raises(ProtocolError, match='shares must be'):
    shamir.restore(np.arange(3), shares[:2])
