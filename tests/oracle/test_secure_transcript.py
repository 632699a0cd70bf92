"""What the server sees short of the threshold looks uniform, whatever the clients' values are."""

import hashlib

import numpy as np
import pytest
from reference.secure_parties import Parties, body
from scipy import stats

from fedjax_mem.secagg import messages, primitives, shamir
from fedjax_mem.secagg.messages import Kind

N, T, SIZE = 5, 3, 20_000
# Of one test; some hundred are made with fixed randomness.
LEVEL = 1e-5


@pytest.fixture(autouse=True)
def fixed_randomness(monkeypatch):
  """Draws every secret from a hash of a counter, so that no test fails by chance."""
  counter = iter(range(10**9))
  draw = lambda count: hashlib.shake_256(b'%d' % next(counter)).digest(count)
  monkeypatch.setattr(primitives, 'random_bytes', draw)


def transcript(values, t=T):
  """Returns the session up to the unmasking, with these values for all, and what was sent."""
  parties = Parties(n=N, t=t, size=SIZE, bits=32, bound=2**28)
  parties.values = [np.asarray(values(i)) for i in range(N)]
  sent = {}
  while parties.server.round != Kind.UNMASK:
    kind = parties.server.round
    sent[kind] = {i: body(m, parties.session, True) for i, m in parties.step().items()}
  return parties, sent


INPUTS = {
  'zeros': lambda i: np.zeros(SIZE, np.int64),
  'largest': lambda i: np.full(SIZE, 2**28 * (-1) ** i),
  'ramp': lambda i: np.arange(SIZE) * (i + 1),
}


def uniform(data):
  """Returns the p-value of the chi-square test that bytes are uniform."""
  counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
  return stats.chisquare(counts).pvalue


def correlation(a, b):
  """Returns the correlation in standard deviations of what independent ones have."""
  return np.corrcoef(a, b)[0, 1] * np.sqrt(len(a))


@pytest.mark.parametrize('name', INPUTS)
def test_masked_values_are_uniform_and_say_nothing_of_each_other(name):
  _, sent = transcript(INPUTS[name])
  rows = [np.frombuffer(sent[Kind.MASKED][i], '<u4') for i in range(N)]
  for i, row in enumerate(rows):
    assert uniform(row.tobytes()) > LEVEL
    centred = row.view('<i4').astype(float)
    values = np.asarray(INPUTS[name](i), float)
    if values.std():
      assert abs(correlation(centred, values)) < 4.5
    assert abs(correlation(centred[1:], centred[:-1])) < 4.5
    for other in rows[:i]:
      assert abs(correlation(centred, other.view('<i4').astype(float))) < 4.5
  # Nor does any sum of some, or all: the self masks are still there.
  for members in range(1, 2**N):
    total = np.sum([rows[i] for i in range(N) if members >> i & 1], axis=0, dtype=np.uint32)
    assert uniform(total.tobytes()) > LEVEL


def test_the_tests_can_fail():
  """They find values under the pair masks alone, and a mask used twice."""
  parties, sent = transcript(INPUTS['ramp'])
  rows = [np.frombuffer(sent[Kind.MASKED][i], '<u4').copy() for i in range(N)]
  for i, client in enumerate(parties.clients):
    own = primitives.derive(
      client._seed, b'self mask', parties.session.digest, i.to_bytes(4, 'little')
    )
    primitives.add_masks(rows[i], [], [own])
  total = np.sum(rows, axis=0, dtype=np.uint32)
  np.testing.assert_array_equal(total, np.arange(SIZE) * 15)
  assert uniform(total.tobytes()) < 1e-100
  assert abs(correlation(total.astype(float), np.arange(SIZE, dtype=float))) > 100
  first, again = (np.frombuffer(sent[Kind.MASKED][0], '<u4') for _ in range(2))
  assert abs(correlation(first.astype(float), (again + 5).astype(float))) > 100


@pytest.mark.parametrize('t', [3, 5])
def test_boxes_keys_and_hashes_are_uniform(t):
  boxes, keys, hashes = b'', b'', b''
  for _ in range(20):
    _, sent = transcript(lambda i: np.zeros(SIZE, np.int64), t)
    for i in range(N):
      text = sent[Kind.SHARES][i]
      hashes += text[:32]
      found = np.frombuffer(text[32:], messages.BOX_RECORD)
      boxes += found['box'].tobytes()
      both = np.frombuffer(sent[Kind.ADVERTISE][i], np.uint8).reshape(2, 32)
      keys += both[:, :31].tobytes()  # the top bit of a point is always zero
  assert uniform(boxes) > LEVEL
  assert uniform(keys) > LEVEL
  assert uniform(hashes) > LEVEL


def test_shares_short_of_the_threshold_are_uniform():
  """Of the same secrets, again and again: the shares of t - 1 clients, and what they restore."""
  seen = [[], []]
  secret = bytes(range(32))
  for _ in range(600):
    shares = shamir.split([secret], T, np.arange(N))
    for held, share in zip(seen, shares[1:T], strict=True):
      held.append(share[0])
  a, b = (np.array(rows).astype(float).ravel() for rows in seen)
  for held in (a, b):
    assert stats.kstest(held / shamir.PRIME, 'uniform').pvalue > LEVEL
  assert abs(correlation(a, b)) < 4.5
  limbs = np.tile(np.frombuffer(secret, np.uint8)[:33:3].astype(float), 600)
  for held in (a, b):
    assert abs(correlation(held, limbs)) < 4.5
  # With t - 1 points alone, the value at zero is anything.
  weights = shamir.lagrange_at_zero(np.array([2, 3], np.uint64)).astype(object)
  restored = [
    (int(x) * weights[0] + int(y) * weights[1]) % shamir.PRIME for x, y in zip(a, b, strict=True)
  ]
  guessed = np.array(restored, float) / shamir.PRIME
  assert stats.kstest(guessed, 'uniform').pvalue > LEVEL
