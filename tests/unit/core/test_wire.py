"""The bytes of messages: what is written is read back, and nothing else is taken."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedjax_mem.core import wire

FAST = settings(max_examples=60, deadline=None, database=None)


def sealed(body):
  """Returns the message with a checksum that fits."""
  return body + struct.pack('<I', zlib.crc32(body))


def header(parts, weight=1.0, version=1, magic=b'FMCM'):
  return struct.pack('<4sBHf', magic, version, parts, weight)


def part(kind, form, count, data=b''):
  return struct.pack('<BBQ', kind, form, count) + data


@st.composite
def parts(draw):
  kind = draw(st.sampled_from(['raw', 'floats', 'levels', 'indices']))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  count = draw(st.integers(0, 70))
  if kind == 'raw':
    return wire.Raw(rng.integers(0, 256, count, dtype=np.uint8))
  if kind == 'floats':
    return wire.Floats(rng.normal(size=count).astype(np.float32))
  if kind == 'levels':
    bits = draw(st.integers(1, 32))
    return wire.Levels(rng.integers(0, 2**bits, count).astype(np.uint32), bits)
  size = draw(st.sampled_from([count, count + 3, 1000, 10**6, 2**31 - 1]))
  size = max(size, count)
  picked = set(rng.integers(0, max(size, 1), 3 * count).tolist()) if size else set()
  return wire.Indices(np.array(sorted(picked)[:count], np.int64).astype(np.int32), size)


def assert_same(found, expected):
  assert [wire.spec(p) for p in found] == [wire.spec(p) for p in expected]
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a.values, b.values)


@given(st.lists(parts(), max_size=5), st.floats(width=32, allow_nan=False))
@FAST
def test_what_is_written_is_read_back(given_parts, weight):
  data = wire.encode(weight, given_parts)
  packet = wire.decode(data, [wire.spec(p) for p in given_parts])
  assert packet.weight == weight
  assert_same(packet.parts, given_parts)
  # The fixed bytes, and of the indices the shorter of both forms.
  varint = lambda gap: max(1, -(-int(gap).bit_length() // 7))
  size = wire.OVERHEAD
  for p in given_parts:
    size += wire.fixed_size(p)
    if isinstance(p, wire.Indices):
      gaps = np.diff(p.values.astype(np.int64), prepend=-1) - 1
      size += min(sum(map(varint, gaps)), -(-p.size // 8))
  assert len(data) == size


@given(st.lists(parts(), max_size=3), st.data())
@FAST
def test_a_truncated_message_is_refused(given_parts, data):
  whole = wire.encode(1.0, given_parts)
  short = whole[: data.draw(st.integers(0, len(whole) - 1))]
  with pytest.raises(ValueError):
    wire.decode(short)


@given(st.lists(parts(), max_size=3), st.data())
@FAST
def test_a_flipped_bit_is_refused(given_parts, data):
  whole = bytearray(wire.encode(1.0, given_parts))
  at = data.draw(st.integers(0, 8 * len(whole) - 1))
  whole[at // 8] ^= 1 << at % 8
  with pytest.raises(ValueError):
    wire.decode(bytes(whole))


@given(st.lists(parts(), min_size=1, max_size=3), st.data())
@settings(max_examples=150, deadline=None, database=None)
def test_a_forged_message_is_refused_or_sound(given_parts, data):
  # With a checksum that fits: what is taken must be a message that would be written the same way.
  body = bytearray(wire.encode(1.0, given_parts)[:-4])
  for _ in range(data.draw(st.integers(1, 4))):
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
  assert_refused_or_sound(sealed(bytes(body)))


@given(st.binary(max_size=200))
@example(b'')
@settings(max_examples=150, deadline=None, database=None)
def test_noise_is_refused(data):
  with pytest.raises(ValueError):
    wire.decode(data)
  assert_refused_or_sound(sealed(header(1) + data))


def assert_refused_or_sound(message):
  try:
    packet = wire.decode(message)
  except ValueError as error:
    assert str(error)
    return
  for p in packet.parts:
    if isinstance(p, wire.Indices):
      assert (np.diff(p.values.astype(np.int64)) > 0).all()
      assert p.values.size == 0 or (p.values[0] >= 0 and p.values[-1] < p.size)
  again = wire.decode(wire.encode(packet.weight, packet.parts))
  assert_same(again.parts, packet.parts)


CLAIMS = {
  'raw': part(0, 8, 2**40),
  'floats': part(1, 32, 2**40),
  'levels': part(2, 1, 2**40),
  'bitmap': part(3, 0, 2**30, struct.pack('<Q', 2**31 - 1)),
  'gaps': part(3, 1, 2**30, struct.pack('<Q', 2**31 - 1)),
  'many': part(3, 1, 2**40, struct.pack('<Q', 2**40)),
  'all': part(1, 32, 2**64 - 1),
}


@pytest.mark.parametrize('claim', CLAIMS.values(), ids=CLAIMS)
def test_a_claim_is_refused_before_anything_is_allocated(claim):
  message = sealed(header(1) + claim + bytes(100))
  tracemalloc.start()
  with pytest.raises(ValueError, match='must'):
    wire.decode(message)
  assert tracemalloc.get_traced_memory()[1] < 100_000
  tracemalloc.stop()


GAPS = lambda count, size, data: part(3, 1, count, struct.pack('<Q', size) + data)
BITMAP = lambda count, size, data: part(3, 0, count, struct.pack('<Q', size) + data)
FORGED = {
  'magic': (header(0, magic=b'GZIP'), "must begin with b'FMCM'"),
  'version': (header(0, version=2), 'version 1'),
  'parts': (header(2) + part(1, 32, 0), 'must hold the 10 bytes'),
  'kind': (header(1) + part(7, 8, 0), 'kind of a part must be below 4, got 7'),
  'form': (header(1) + part(1, 64, 0), r'form of a part must be one of \[32\], got 64'),
  'bits': (header(1) + part(2, 33, 0), 'form of a part'),
  'rest': (header(0) + b'x', 'must end after its last part, got 1 more'),
  'levels end': (header(1) + part(2, 1, 3, b'\xff'), 'must end with zero bits'),
  'bitmap count': (header(1) + BITMAP(2, 8, b'\x01'), 'must mark 2 of 8 values, got 1'),
  'bitmap end': (header(1) + BITMAP(1, 4, b'\x80'), 'must mark 1 of 4'),
  'more than all': (header(1) + BITMAP(9, 8, b'\xff'), 'got 9 of 8'),
  'beyond': (header(1) + GAPS(2, 8, b'\x03\x05'), r'must be in \[0, 8\), got 9'),
  'endless gap': (header(1) + GAPS(1, 9, b'\x80' * 6), 'must hold the 1 gaps'),
  'long gap': (
    header(1) + GAPS(2, 9, b'\x80\x80\x80\x80\x80\x01' + b'\x00' * 9),
    'at most 5 bytes',
  ),
  'overlong gap': (header(1) + GAPS(1, 9, b'\x81\x00'), 'as short as it can be'),
}


@pytest.mark.parametrize('body, told', FORGED.values(), ids=FORGED)
def test_a_forged_message_is_told_what_is_wrong(body, told):
  with pytest.raises(ValueError, match=told):
    wire.decode(sealed(body))


def test_other_than_expected_and_too_long():
  data = wire.encode(2.0, [wire.Levels(np.array([1, 3]), 2)])
  assert wire.decode(data, [wire.Spec('levels', 2, 2)]).weight == 2.0
  with pytest.raises(ValueError, match=r'a part must be .*count=3.*, got .*count=2'):
    wire.decode(data, [wire.Spec('levels', 3, 2)])
  with pytest.raises(ValueError, match='must have 2 parts, got 1'):
    wire.decode(data, [wire.Spec('levels', 2, 2)] * 2)
  with pytest.raises(ValueError, match=f'must be at most 9 bytes, got {len(data)}'):
    wire.decode(data, most=9)
  with pytest.raises(ValueError, match=r'the checksum must be 0x'):
    wire.decode(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
  'part_, told',
  [
    (wire.Levels(np.array([4]), 2), r'levels must be in \[0, 4\)'),
    (wire.Levels(np.array([-1]), 2), r'levels must be in \[0, 4\)'),
    (wire.Levels(np.array([1]), 0), 'bits must be an integer >= 1 and <= 32, got 0'),
    (wire.Indices(np.array([3, 3]), 9), 'must be rising'),
    (wire.Indices(np.array([3, 9]), 9), r'indices must be in \[0, 9\)'),
    (wire.Indices(np.array([3]), 2**31), 'size must be'),
  ],
)
def test_what_cannot_be_written(part_, told):
  with pytest.raises(ValueError, match=told):
    wire.encode(1.0, [part_])


def test_the_layout_of_a_message():
  # Byte by byte, as the module's docstring says.
  data = wire.encode(
    0.5, [wire.Indices(np.array([1, 300]), 10_000), wire.Levels(np.array([1, 2, 3]), 3)]
  )
  gaps = b'\x01' + bytes([(298 & 127) | 128, 298 >> 7])
  body = header(2, 0.5) + GAPS(2, 10_000, gaps)
  body += part(2, 3, 3, bytes([0b11_010_001, 0b0]))
  assert data == sealed(body)
