"""Agreement, boxes, signatures and masks: what they refuse, and the masks against AES by hand."""

import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedjax_mem.secagg import primitives
from fedjax_mem.secagg.errors import ProtocolError

P = 2**255 - 19
# All points of order 1, 2, 4 and 8 of the curve and its twist, and codes of them beyond p.
LOW_ORDER = [
  0,
  1,
  325606250916557431795983626356110631294008115727848805560023387167927233504,
  39382357235489614581723060781553021112529911719440698176882885853963445705823,
  P - 1,
  P,
  P + 1,
]


def keystream(key, count):
  """Returns AES-256 of the counters 0, 1, … in electronic codebook mode."""
  blocks = b''.join(i.to_bytes(16, 'big') for i in range(-(-count // 16)))
  return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)[:count]


@pytest.mark.parametrize('bits', [16, 32, 64])
@pytest.mark.parametrize('size', [1, 7, 70_000])
def test_masks_are_aes_in_counter_mode(bits, size):
  dtype = np.dtype(f'<u{bits // 8}')
  a, b, c = (bytes([i]) * 32 for i in range(3))
  total = np.arange(size, dtype=dtype)
  primitives.add_masks(total, [a, b], [c])
  x, y, z = (np.frombuffer(keystream(k, size * dtype.itemsize), dtype) for k in (a, b, c))
  np.testing.assert_array_equal(total, np.arange(size, dtype=dtype) + x + y - z)


def test_masks_cancel_with_more_keys_than_are_open_at_a_time():
  keys = [bytes([i % 256, i // 256]) * 16 for i in range(600)]
  total = np.arange(100, dtype=np.uint32)
  primitives.add_masks(total, keys, [])
  assert (total != np.arange(100)).any()
  primitives.add_masks(total, [], keys[::-1])
  np.testing.assert_array_equal(total, np.arange(100))


def test_both_sides_agree_and_what_it_is_for_matters():
  a, b = primitives.Pair(), primitives.Pair()
  assert a.agree(b.public, b'x') == b.agree(a.public, b'x')
  assert a.agree(b.public, b'x') != a.agree(b.public, b'y')
  assert a.agree(b.public, b'x', b'y') != a.agree(b.public, b'xy')


@pytest.mark.parametrize('point', LOW_ORDER)
def test_points_of_low_order_are_refused(point):
  with pytest.raises(ProtocolError, match='public key'):
    primitives.Pair().agree(point.to_bytes(32, 'little'), b'x')


@pytest.mark.parametrize('key', [b'', bytes(31), b'\xff' * 32, bytes([9] + 30 * [0] + [128])])
def test_what_is_no_canonical_point_is_refused(key):
  with pytest.raises(ProtocolError, match='canonical'):
    primitives.Pair().agree(key, b'x')


def test_a_box_seals_once():
  box = primitives.Box(bytes(32))
  box.seal(b'text', b'bound')
  with pytest.raises(ProtocolError, match='nonce'):
    box.seal(b'text', b'bound')


def test_an_altered_or_moved_box_is_refused():
  sealed = primitives.Box(bytes(32)).seal(b'text', b'bound')
  assert primitives.unseal(bytes(32), sealed, b'bound') == b'text'
  flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
  wrong = [(bytes(32), flipped, b'bound'), (bytes(32), sealed[:-1], b'bound')]
  wrong += [
    (bytes(32), sealed, b'other'),
    (b'k' * 32, sealed, b'bound'),
    (bytes(32), b'', b'bound'),
  ]
  for key, box, bound in wrong:
    with pytest.raises(ProtocolError, match='sealed'):
      primitives.unseal(key, box, bound)


def test_signatures_are_of_one_identity_and_message():
  a, b = primitives.Identity(), primitives.Identity()
  signature = a.sign(b'text')
  assert primitives.verify(a.public, signature, b'text')
  assert not primitives.verify(b.public, signature, b'text')
  assert not primitives.verify(a.public, signature, b'texT')
  assert not primitives.verify(bytes(31), signature, b'text')


def test_no_secret_is_printed():
  secret = bytes(range(32))
  things = [primitives.Pair(secret), primitives.Identity(secret), primitives.Box(secret)]
  for shown in map(repr, things):
    assert secret.hex() not in shown
    assert repr(secret) not in shown


@pytest.mark.slow
def test_the_room_does_without_cryptography():
  code = 'import sys, fedjax_mem.secagg; sys.exit("cryptography" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
