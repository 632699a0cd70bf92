"""The two calls of `SecureAggregator`: the average, the missing, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.secagg.aggregator import EncryptedUpdate, SecureAggregator
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError


def update(seed):
  rng = np.random.default_rng(seed)
  return {'w': rng.normal(size=(3, 2)).astype(np.float32), 'b': [rng.normal(size=4)]}


def ten():
  return SecureAggregator(num_clients=10, threshold=6)


def test_as_written_in_the_document():
  updates = [(update(i), f'client {i}') for i in range(10)]
  aggregator = ten()
  encrypted_updates = [aggregator.encrypt(u, client_id) for u, client_id in updates]
  aggregated = aggregator.secure_aggregate(encrypted_updates)
  wanted = np.mean([u['w'] for u, _ in updates], axis=0)
  np.testing.assert_allclose(aggregated['w'], wanted, atol=1e-7)
  np.testing.assert_allclose(
    aggregated['b'][0], np.mean([u['b'][0] for u, _ in updates], axis=0), atol=1e-11
  )
  assert aggregated['w'].dtype == np.float32
  assert aggregated['b'][0].dtype == np.float64


@pytest.mark.parametrize('missing', [[], [0], [9, 3], [1, 2, 5, 8]])
def test_up_to_n_minus_t_may_be_missing_and_weights_count(missing):
  aggregator = ten()
  sent = {i: aggregator.encrypt(update(i), i, weight=i + 1.0) for i in range(10)}
  found = aggregator.secure_aggregate([sent[i] for i in sent if i not in missing])
  stay = [i for i in range(10) if i not in missing]
  wanted = np.average([update(i)['b'][0] for i in stay], axis=0, weights=[i + 1 for i in stay])
  np.testing.assert_allclose(found['b'][0], wanted, atol=1e-11)


def test_clients_that_never_encrypted_may_be_missing_too():
  aggregator = ten()
  found = aggregator.secure_aggregate([aggregator.encrypt(update(i), i) for i in range(6)])
  np.testing.assert_allclose(
    found['w'], np.mean([update(i)['w'] for i in range(6)], axis=0), atol=1e-7
  )


def test_below_the_threshold_nothing_is_released_and_the_round_goes_on():
  aggregator = ten()
  with pytest.raises(BelowThreshold, match='6 or more'):
    aggregator.secure_aggregate([])
  sent = [aggregator.encrypt(update(i), i) for i in range(5)]
  with pytest.raises(BelowThreshold, match=r'6 or more.*got 5'):
    aggregator.secure_aggregate(sent)
  sent.append(aggregator.encrypt(update(5), 5))
  assert aggregator.secure_aggregate(sent)['w'].shape == (3, 2)


def test_a_round_is_aggregated_once():
  """Two sums that differ by one client would give that client away."""
  aggregator = ten()
  sent = [aggregator.encrypt(update(i), i) for i in range(8)]
  aggregator.secure_aggregate(sent)
  with pytest.raises(ProtocolError):
    aggregator.secure_aggregate(sent[:7])
  fresh = [aggregator.encrypt(update(i), i) for i in range(8)]
  with pytest.raises(ProtocolError, match='session'):
    aggregator.secure_aggregate([*fresh[:7], sent[7]])
  aggregator.secure_aggregate(fresh)


def test_twice_and_altered_are_refused_and_the_round_goes_on():
  aggregator = ten()
  sent = [aggregator.encrypt(update(i), i) for i in range(7)]
  altered = EncryptedUpdate(0, sent[0].message[:-1] + bytes([sent[0].message[-1] ^ 1]))
  moved = EncryptedUpdate(8, sent[0].message)
  for wrong in ([*sent, sent[0]], [altered, *sent[1:]], [moved, *sent[1:]]):
    with pytest.raises(ProtocolError):
      aggregator.secure_aggregate(wrong)
  found = aggregator.secure_aggregate(sent)
  np.testing.assert_allclose(
    found['w'], np.mean([update(i)['w'] for i in range(7)], axis=0), atol=1e-7
  )


def test_one_update_a_client_and_n_clients():
  aggregator = SecureAggregator(2, 2)
  aggregator.encrypt(update(0), 'a')
  with pytest.raises(ProtocolError, match="'a' again"):
    aggregator.encrypt(update(1), 'a')
  aggregator.encrypt(update(1), 'b')
  with pytest.raises(ProtocolError, match='one of 2'):
    aggregator.encrypt(update(2), 'c')


@pytest.mark.parametrize(
  ('wrong', 'weight', 'problem'),
  [
    ({'w': np.full((3, 2), np.nan, np.float32), 'b': [np.zeros(4)]}, 1.0, 'finite'),
    ({'w': np.full((3, 2), 2.0**21, np.float32), 'b': [np.zeros(4)]}, 1.0, 'at most'),
    ({'w': np.full((3, 2), 2.0**11, np.float32), 'b': [np.zeros(4)]}, 1024.0, 'at most'),
    (update(0), 2.0**21, 'weight'),
    (update(0), 0.0, 'weight'),
    ({'w': np.zeros((3, 2), int), 'b': [np.zeros(4)]}, 1.0, 'float'),
    ({}, 1.0, 'float'),
    ({'w': np.zeros((2, 3), np.float32), 'b': [np.zeros(4)]}, 1.0, 'structure and shapes'),
    ({'w': np.zeros((3, 2), np.float32)}, 1.0, 'structure and shapes'),
  ],
)
def test_a_wrong_update_is_refused_and_the_client_may_try_again(wrong, weight, problem):
  aggregator = SecureAggregator(2, 2)
  sent = [aggregator.encrypt(update(0), 'a')]
  with pytest.raises(ValueError, match=problem):
    aggregator.encrypt(wrong, 'b', weight)
  sent.append(aggregator.encrypt(update(0), 'b'))
  np.testing.assert_allclose(aggregator.secure_aggregate(sent)['w'], update(0)['w'], atol=1e-7)


def test_arrays_of_jax_come_back_as_such():
  aggregator = SecureAggregator(2, 2)
  given = [jnp.full(3, i, jnp.float32) for i in (1, 2)]
  found = aggregator.secure_aggregate([aggregator.encrypt(x, i) for i, x in enumerate(given)])
  assert isinstance(found, type(given[0]))
  assert found.dtype == jnp.float32
  assert found.tolist() == [1.5] * 3


@pytest.mark.parametrize(('n', 't'), [(10, 5), (10, 11), (1, 1), (10, 0), (10, 6.0)])
def test_a_wrong_threshold_is_refused(n, t):
  with pytest.raises(ValueError, match='must be'):
    SecureAggregator(num_clients=n, threshold=t)


def test_what_is_sent_and_shown_has_no_value_in_it():
  aggregator = SecureAggregator(2, 2)
  sent = aggregator.encrypt(np.zeros(1000), 'a')
  counts = np.bincount(np.frombuffer(sent.message[45:-32], np.uint8), minlength=256)
  assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 8 * np.sqrt(2 * 255)
  assert repr(sent) == f'EncryptedUpdate(slot=0, bytes={len(sent.message)})'
