"""The wire format of a message: its bytes, their number, and checks when they are read.

A message is a header, parts, and a checksum; all numbers are little-endian.

    header    magic 4s | version u8 | number of parts u16 | the message's weight f32
    part      kind u8 | form u8 | count u64 | data
    checksum  CRC-32 of everything before it, u32

    kind      form               data
    raw       8                  `count` bytes
    floats    32                 `count` float32
    levels    bits, 1 … 32       `count` unsigned integers, packed without gaps, lowest bit first
    indices   0: bitmap          size u64 | `size` bits, of which `count` are set
              1: gaps            size u64 | `count` gaps between rising indices, less one, LEB128

Indices are written in the shorter form, the bitmap if both are equally long. What the receiver can
derive is not sent: shapes, and what follows from the seed, the round and the client (coordinates of
random-k, rotations).

Only NumPy and the standard library are needed, so that a server can read messages without jax. The
checksum detects accidents, not attackers. An attacker can do no more than send other numbers: no
memory is allocated for values that the message does not contain, and every index is checked.
"""

import dataclasses
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MAGIC = b'FMCM'
VERSION = 1
_HEADER = struct.Struct('<4sBHf')
_PART = struct.Struct('<BBQ')
_SIZE = struct.Struct('<Q')
_CHECKSUM = struct.Struct('<I')
OVERHEAD = _HEADER.size + _CHECKSUM.size
PART = _PART.size
INDICES = _SIZE.size  # bytes of a part of indices besides its header and the indices themselves
MOST_PARTS = 2**16 - 1
MOST_SIZE = 2**31 - 1  # of a vector whose indices are sent: they are int32
_RAW, _FLOATS, _LEVELS, _INDICES = range(4)
_NAMES = ('raw', 'floats', 'levels', 'indices')
_BITMAP, _GAPS = 0, 1
# A gap takes one byte, and one more for each of these numbers that it is not below.
STEPS = (2**7, 2**14, 2**21, 2**28)


@dataclasses.dataclass(frozen=True)
class Raw:
  """Bytes as they are: `values` uint8 [n]."""

  values: Any


@dataclasses.dataclass(frozen=True)
class Floats:
  """`values` float32 [n]."""

  values: Any


@dataclasses.dataclass(frozen=True)
class Levels:
  """`values` [n], integers in [0, 2 ** bits), each in `bits` bits (1 … 32)."""

  values: Any
  bits: int


@dataclasses.dataclass(frozen=True)
class Indices:
  """`values` int32 [k], rising, of a vector of `size` values."""

  values: Any
  size: int


Part = Raw | Floats | Levels | Indices
_KINDS: tuple[type, ...] = (Raw, Floats, Levels, Indices)


class Packet(NamedTuple):
  """A message: its weight, and its parts."""

  weight: float
  parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a receiver expects of a part.

  Attributes:
    kind: 'raw', 'floats', 'levels' or 'indices'.
    count: of its values.
    extent: bits of levels, size of the vector of indices, else 0.
  """

  kind: str
  count: int
  extent: int


def spec(part: Part) -> Spec:
  """Returns what a receiver of such a part expects (its values may be shapes)."""
  kind = _NAMES[_KINDS.index(type(part))]
  extent = getattr(part, 'bits', getattr(part, 'size', 0))
  return Spec(kind, int(np.prod(part.values.shape)), extent)


def fixed_size(part: Part) -> int:
  """Returns the number of bytes of a part, without the indices of a part of indices."""
  expected = spec(part)
  kind, count, extent = expected.kind, expected.count, expected.extent
  body = {'raw': count, 'floats': 4 * count, 'levels': -(-count * extent // 8), 'indices': INDICES}
  return PART + body[kind]


def bitmap_size(size: int) -> int:
  """Returns the bytes of the bitmap of a vector of `size` values."""
  return -(-size // 8)


def encode(weight: float, parts: Sequence[Part]) -> bytes:
  """Returns the bytes of a message.

  Args:
    weight: of the message.
    parts: with arrays that NumPy can read.

  Raises:
    ValueError: values that the parts cannot hold.
  """
  if len(parts) > MOST_PARTS:
    raise ValueError(f'parts must be at most {MOST_PARTS}, got {len(parts)}.')
  pieces = [_HEADER.pack(MAGIC, VERSION, len(parts), weight)]
  for part in parts:
    pieces += _encoded(part)
  body = b''.join(pieces)
  return body + _CHECKSUM.pack(zlib.crc32(body))


def _encoded(part: Part) -> list[bytes]:
  """Returns the header and the data of a part."""
  values = np.asarray(part.values).reshape(-1)
  kind = _KINDS.index(type(part))
  if isinstance(part, Raw):
    return [_PART.pack(kind, 8, values.size), values.astype(np.uint8).tobytes()]
  if isinstance(part, Floats):
    return [_PART.pack(kind, 32, values.size), values.astype('<f4').tobytes()]
  whole = values.astype(np.int64)
  if isinstance(part, Levels):
    if not 1 <= part.bits <= 32:
      raise ValueError(f'bits must be an integer >= 1 and <= 32, got {part.bits!r}.')
    _check_range('levels', whole, 2**part.bits)
    return [_PART.pack(kind, part.bits, values.size), _packed(whole, part.bits)]
  if not 0 <= part.size <= MOST_SIZE:
    raise ValueError(f'size must be an integer >= 0 and <= {MOST_SIZE}, got {part.size!r}.')
  _check_range('indices', whole, part.size)
  gaps = np.diff(whole, prepend=-1) - 1
  if (gaps < 0).any():
    raise ValueError(f'indices must be rising, got {whole[:8].tolist()!r}.')
  form, data = _GAPS, _varints(gaps)
  if bitmap_size(part.size) <= len(data):
    marks = np.zeros(part.size, np.uint8)
    marks[whole] = 1
    form, data = _BITMAP, np.packbits(marks, bitorder='little').tobytes()
  return [_PART.pack(kind, form, values.size), _SIZE.pack(part.size), data]


def _check_range(name: str, values: np.ndarray, end: int) -> None:
  if values.size and not (values.min() >= 0 and values.max() < end):
    raise ValueError(
      f'{name} must be in [0, {end}), got values from {values.min()} to {values.max()}.'
    )


def _packed(values: np.ndarray, bits: int) -> bytes:
  """Returns integers [n] of `bits` bits each, without gaps, lowest bit first."""
  octets = values.astype('<u4').view(np.uint8).reshape(-1, 4)
  if bits in (8, 16, 32):
    return octets[:, : bits // 8].tobytes()
  each = np.unpackbits(octets, axis=1, count=bits, bitorder='little')
  return np.packbits(each.reshape(-1), bitorder='little').tobytes()


def _unpacked(data: np.ndarray, bits: int, count: int) -> np.ndarray:
  """Returns `count` integers of `bits` bits each, uint32."""
  flags = np.unpackbits(data, bitorder='little')
  if flags[count * bits :].any():
    raise ValueError('levels must end with zero bits, got others.')
  octets = np.zeros((count, 4), np.uint8)
  each = np.packbits(flags[: count * bits].reshape(count, bits), axis=1, bitorder='little')
  octets[:, : each.shape[1]] = each
  return octets.view('<u4').reshape(-1).astype(np.uint32)


def _varints(values: np.ndarray) -> bytes:
  """Returns integers [n] >= 0 in LEB128: seven bits a byte, lowest first, the last below 128."""
  lengths = np.ones(values.size, np.int64)
  for step in STEPS:
    lengths += values >= step
  ends = np.cumsum(lengths)
  out = np.zeros(ends[-1] if values.size else 0, np.uint8)
  for j in range(len(STEPS) + 1):
    on = lengths > j
    more = np.where(lengths[on] > j + 1, 128, 0)
    out[(ends - lengths)[on] + j] = (values[on] >> 7 * j) & 127 | more
  return out.tobytes()


def decode(data: bytes, like: Sequence[Spec] | None = None, most: int = 2**31 - 1) -> Packet:
  """Returns the message that was encoded as `data`.

  Args:
    data: the bytes.
    like: what the receiver expects of each part; None: any valid parts.
    most: the most bytes that a message may have.

  Raises:
    ValueError: a message that is too long, truncated, damaged, of another version, or other than
      expected.
  """
  data = bytes(data)
  if len(data) > most:
    raise ValueError(f'a message must be at most {most} bytes, got {len(data)}.')
  if len(data) < OVERHEAD:
    raise ValueError(f'a message must be at least {OVERHEAD} bytes, got {len(data)}: truncated.')
  magic, version, number, weight = _HEADER.unpack_from(data)
  if magic != MAGIC or version != VERSION:
    raise ValueError(
      f'a message must begin with {MAGIC!r} and version {VERSION}, got {magic!r} and {version}.'
    )
  if like is not None and number != len(like):
    raise ValueError(f'a message must have {len(like)} parts, got {number}.')
  reader = _Reader(data[_HEADER.size : -_CHECKSUM.size])
  # Headers first: a message that claims more than it contains is refused before the checksum reads
  # all of it.
  parts = [reader.part(None if like is None else like[i]) for i in range(number)]
  if reader.left:
    raise ValueError(f'a message must end after its last part, got {reader.left} more bytes.')
  (sent,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
  found = zlib.crc32(data[: -_CHECKSUM.size])
  if sent != found:
    raise ValueError(f'the checksum must be {found:#010x}, got {sent:#010x}: a damaged message.')
  return Packet(weight, tuple(parts))


class _Reader:
  """A message while it is read, from the first byte to the last."""

  def __init__(self, data: bytes):
    self._data, self._at = data, 0

  @property
  def left(self) -> int:
    """Bytes that have not been read."""
    return len(self._data) - self._at

  def part(self, wanted: Spec | None) -> Part:
    """Returns the next part; `wanted` is what the receiver expects, None: any valid part."""
    kind, form, count = _PART.unpack(self._take(PART))
    if kind >= len(_KINDS):
      raise ValueError(f'the kind of a part must be below {len(_KINDS)}, got {kind}.')
    extent = form if kind == _LEVELS else 0
    if kind == _INDICES:
      (extent,) = _SIZE.unpack(self._take(INDICES))
    found = Spec(_NAMES[kind], count, extent)
    if wanted is not None and found != wanted:
      raise ValueError(f'a part must be {wanted}, got {found}.')
    if kind == _RAW:
      _check_form(form, (8,))
      return Raw(self._array(count))
    if kind == _FLOATS:
      _check_form(form, (32,))
      return Floats(self._array(4 * count).view('<f4').astype(np.float32))
    if kind == _LEVELS:
      _check_form(form, range(1, 33))
      return Levels(_unpacked(self._array(-(-count * form // 8)), form, count), form)
    _check_form(form, (_BITMAP, _GAPS))
    if extent > MOST_SIZE or count > extent:
      raise ValueError(
        f'indices must be of at most {MOST_SIZE} values and no more than those, got {count} of '
        f'{extent}.'
      )
    return Indices(
      self._bitmap(count, extent) if form == _BITMAP else self._gaps(count, extent), extent
    )

  def _take(self, count: int) -> bytes:
    """Returns the next `count` bytes, or raises `ValueError` if the message has fewer."""
    if count > self.left:
      raise ValueError(f'a message must hold the {count} bytes it claims, got {self.left} more.')
    self._at += count
    return self._data[self._at - count : self._at]

  def _array(self, count: int) -> np.ndarray:
    return np.frombuffer(self._take(count), np.uint8)

  def _bitmap(self, count: int, size: int) -> np.ndarray:
    flags = np.unpackbits(self._array(bitmap_size(size)), bitorder='little')
    values = np.flatnonzero(flags)
    if len(values) != count or (count and values[-1] >= size):
      raise ValueError(f'a bitmap must mark {count} of {size} values, got {len(values)}.')
    return values.astype(np.int32)

  def _gaps(self, count: int, size: int) -> np.ndarray:
    if count > self.left:
      raise ValueError(f'a message must hold the {count} gaps it claims, got {self.left} bytes.')
    window = np.frombuffer(self._data, np.uint8, min(self.left, 5 * count), self._at)
    ends = np.flatnonzero(window < 128)[:count]
    if len(ends) < count:
      raise ValueError(f'a message must hold the {count} gaps it claims, got {len(ends)}.')
    if not count:
      return np.zeros(0, np.int32)
    used = window[: ends[-1] + 1]
    self._at += len(used)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 5:
      raise ValueError(f'a gap must take at most 5 bytes, got {lengths.max()}.')
    if ((lengths > 1) & (used[ends] == 0)).any():
      raise ValueError('a gap must be written as short as it can be, got a longer one.')
    place = np.arange(len(used)) - np.repeat(starts, lengths)
    gaps = np.add.reduceat((used.astype(np.int64) & 127) << 7 * place, starts)
    values = np.cumsum(gaps + 1) - 1
    if values[-1] >= size:
      raise ValueError(f'indices must be in [0, {size}), got {values[-1]}.')
    return values.astype(np.int32)


def _check_form(form: int, known: Sequence[int]) -> None:
  if form not in known:
    raise ValueError(f'the form of a part must be one of {list(known)!r}, got {form}.')
