"""How near the memory's limit are the kernels of compression? One JSON line a kernel and size.

    python -m benchmarks.kernels [--size 100000 1000000 10000000] [--only top_k ...] [--repeats 15]

Each line: the median of the kernel's time, of the obvious way to write it in JAX (`plain`), and of
a stream copy (reading and writing a vector of that size in place, in memory that is warm), taken in
turns so that a busy machine slows all three. `gb_s` counts the bytes that have to be moved: what is
read, once for each pass that the mathematics needs, and what is written. `share` is its part of the
stream copy's. `least` times are the best of the repeats. Where random bits are drawn, `draw_ms` is
the time of drawing as many by `jax.random.bits`, as words of 32 bits, and `draw_8_ms` of drawing
them as a byte a value, where that is what is needed.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.kernels.codes import hadamard, low_rank, packing, quantize, random_k, rotate
from fedjax_mem.kernels.order import topk
from fedjax_mem.kernels.random import noise

SIZES = (10**5, 10**6, 10**7)
KEY = jax.random.key(0)


class Case(NamedTuple):
  """What is timed: functions of `arguments`, which they leave alone unless `carries`.

  Attributes:
    ours: the kernel.
    plain: the obvious way.
    arguments: arrays.
    nbytes: bytes that have to be moved.
    draw: random words of 32 bits that are drawn.
    carries: the first argument is donated, and replaced by the result.
  """

  ours: Callable[..., Any]
  plain: Callable[..., Any]
  arguments: tuple[jax.Array, ...]
  nbytes: float
  draw: int = 0
  carries: bool = False


@functools.lru_cache(maxsize=1)
def vector(size: int) -> jax.Array:
  """Returns normal values [size], as small as an update's."""
  rng = np.random.default_rng(0)
  return jnp.asarray(0.01 * rng.standard_normal(size, np.float32))


def top_k(size: int) -> Case:
  """The 5% of largest magnitude, packed."""
  k = size // 20

  def plain(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, indices = jax.lax.top_k(jnp.abs(x), k)
    return x[indices], indices

  return Case(lambda x: topk.pack(x, k), plain, (vector(size),), 12 * size + 12 * k)


def top_k_mask(size: int) -> Case:
  """The mask of the 5% of largest magnitude."""
  k = size // 20

  def plain(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return size >= jnp.sort(size)[-k]

  return Case(lambda x: topk.mask(x, k), plain, (vector(size),), 13 * size)


def random_5(size: int) -> Case:
  """A random 5% of the coordinates, and their values."""
  k = size // 20
  plain = lambda x, key: x[jax.random.permutation(key, size)[:k]]
  ours = lambda x, key: random_k.pick(x, random_k.indices(key, size, k))
  return Case(ours, plain, (vector(size), KEY), 12 * k)


def quantize_bits(bits: int, block: int | None) -> Callable[[int], Case]:
  """Stochastic rounding to so many bits, packed."""

  def case(size: int) -> Case:
    half = (quantize.levels(bits) - 1) / 2

    def plain(x: jax.Array, key: jax.Array) -> jax.Array:
      rows = (
        x.reshape(1, -1) if block is None else jnp.pad(x, (0, -size % block)).reshape(-1, block)
      )
      steps = (rows / jnp.abs(rows).max(1, keepdims=True) + 1) * half
      codes = jnp.floor(steps + jax.random.uniform(key, steps.shape)).astype(jnp.uint8)
      return packing.pack(codes.reshape(-1)[:size], bits)

    def ours(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
      codes, scale = quantize.stochastic(key, x, bits, block=block)
      return packing.pack(codes, bits), scale

    moved = (8 + bits / 8) * size
    return Case(ours, plain, (vector(size), KEY), moved, size // 4)

  return case


def unpack_decode(size: int) -> Case:
  """Packed codes of 4 bits added to a running total."""
  codes, scale = quantize.stochastic(KEY, vector(size), 4, block=1024)
  packed = packing.pack(codes, 4)

  def ours(total: jax.Array, packed: jax.Array) -> jax.Array:
    return total + quantize.decode(packing.unpack(packed, 4, size), scale, 4, 1024)

  def plain(total: jax.Array, packed: jax.Array) -> jax.Array:
    codes = jnp.stack([packed & 15, packed >> 4]).reshape(-1)[:size].astype(jnp.float32)
    return total + (codes - 7) * (jnp.repeat(scale, 1024, total_repeat_length=size) / 7)

  return Case(ours, plain, (jnp.zeros(size), packed), 8.5 * size, carries=True)


def _butterflies(x: jax.Array, key: jax.Array, block: int) -> jax.Array:
  """Returns x [D] rotated as textbooks do it: sums and differences of pairs."""
  rows = jnp.pad(x, (0, -x.size % block)).reshape(-1, block)
  rows = rows * jax.random.rademacher(key, rows.shape, jnp.float32)
  width = 1
  while width < block:
    a, b = jnp.moveaxis(rows.reshape(-1, 2, width), 1, 0)
    rows = jnp.stack([a + b, a - b], axis=1)
    width *= 2
  return rows.reshape(-1, block) / np.sqrt(block)


def rotation(size: int) -> Case:
  """The randomised Hadamard transform."""
  block = hadamard.block_size(size)
  plain = lambda x, key: _butterflies(x, key, block)
  ours = lambda x, key: rotate.rotate(key, x)
  return Case(ours, plain, (vector(size), KEY), 8 * size, size // 32)


def eden(size: int) -> Case:
  """EDEN with 2 bits, packed."""
  block, table = hadamard.block_size(size), jnp.asarray(rotate.centroids(2))

  def plain(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = _butterflies(x, key, block)
    squares = (y**2).sum(1)
    z = y / jnp.sqrt(squares / block)[:, None]
    codes = jnp.searchsorted((table[1:] + table[:-1]) / 2, z).astype(jnp.uint8)
    return packing.pack(codes.reshape(-1), 2), squares / (y * table[codes]).sum(1)

  def ours(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes, scale = rotate.eden_encode(key, x, 2)
    return packing.pack(codes, 2), scale

  return Case(ours, plain, (vector(size), KEY), 4.25 * size, size // 32)


def power_sgd(size: int) -> Case:
  """One power iteration of rank 4 on a square matrix."""
  side = int(size**0.5)
  m, q = vector(side * side).reshape(side, side), low_rank.start(KEY, side, 4)

  def plain(m: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    p = jnp.linalg.qr(m @ q)[0]
    return p, m.T @ p

  return Case(low_rank.encode, plain, (m, q), 8 * side**2)


def gaussian(size: int) -> Case:
  """Gaussian noise added to a sum."""
  ours = lambda x, key: x + noise.gaussian(key, x, 0.1)
  plain = lambda x, key: x + 0.1 * jax.random.normal(key, x.shape)
  return Case(ours, plain, (vector(size), KEY), 8 * size, size)


CASES: dict[str, Callable[[int], Case]] = {
  'top_k': top_k,
  'top_k_mask': top_k_mask,
  'random_k': random_5,
  'quantize_8': quantize_bits(8, None),
  'quantize_4_blocks': quantize_bits(4, 1024),
  'quantize_1': quantize_bits(1, None),
  'unpack_decode_4': unpack_decode,
  'rotate': rotation,
  'eden_2': eden,
  'power_sgd': power_sgd,
  'noise': gaussian,
}


def runner(f: Callable[..., Any], arguments: tuple[jax.Array, ...], carries: bool):
  """Returns a call that runs f once and waits; with `carries` its result is its next argument."""
  if not carries:
    run = jax.jit(f)
    return lambda: jax.block_until_ready(run(*arguments))
  run, held = jax.jit(f, donate_argnums=0), [jnp.array(arguments[0], copy=True)]

  def call() -> None:
    held[0] = jax.block_until_ready(run(held[0], *arguments[1:]))

  return call


def measure(name: str, size: int, repeats: int, plain: bool = True) -> dict[str, Any]:
  """Returns the record of one kernel and size; `plain`: with the obvious way beside it."""
  case = CASES[name](size)
  calls = {
    'ours': runner(case.ours, case.arguments, case.carries),
    'stream': runner(lambda x: x * jnp.float32(1.0001), (vector(size),), True),
  }
  if plain:
    calls['plain'] = runner(case.plain, case.arguments, case.carries)
  if case.draw:
    bits = lambda key: jax.random.bits(key, (case.draw,), jnp.uint32)
    calls['draw'] = runner(bits, (KEY,), False)
  if case.draw == size // 4:
    octets = lambda key: jax.random.bits(key, (size,), jnp.uint8)
    calls['draw_8'] = runner(octets, (KEY,), False)
  times: dict[str, list[float]] = {way: [] for way in calls}
  for call in calls.values():
    call()
  for _ in range(repeats):
    for way, call in calls.items():
      call()  # Warms up what the others have pushed out of the cache.
      began = time.perf_counter()
      call()
      times[way].append(time.perf_counter() - began)
  middle = {way: float(np.median(t)) for way, t in times.items()}
  rate, stream = case.nbytes / middle['ours'] / 1e9, 8 * size / middle['stream'] / 1e9
  least = {way: min(t) for way, t in times.items()}
  record = {
    'kernel': name,
    'size': size,
    'ms': round(middle['ours'] * 1e3, 3),
    'least_ms': round(least['ours'] * 1e3, 3),
    'gb_s': round(rate, 2),
    'stream_gb_s': round(stream, 2),
    'share': round(rate / stream, 2),
  }
  if plain:
    record |= {
      'plain_ms': round(middle['plain'] * 1e3, 3),
      'times_faster': round(middle['plain'] / middle['ours'], 2),
    }
  if case.draw:
    record |= {
      'draw_ms': round(middle['draw'] * 1e3, 3),
      'over_draw': round(middle['ours'] / middle['draw'], 2),
      'least_over_draw': round(least['ours'] / least['draw'], 2),
    }
  if 'draw_8' in middle:
    record['draw_8_ms'] = round(middle['draw_8'] * 1e3, 3)
  return record


def main() -> None:
  """Measures the kernels and prints their lines."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--size', type=int, nargs='+', default=list(SIZES))
  parser.add_argument('--only', nargs='+', choices=sorted(CASES), default=list(CASES))
  parser.add_argument('--repeats', type=int, default=15)
  args = parser.parse_args()
  for name in args.only:
    for size in args.size:
      print(json.dumps(measure(name, size, args.repeats)), flush=True)


if __name__ == '__main__':
  main()
