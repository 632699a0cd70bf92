"""Compression as an object: pytrees to bytes and back, by the codecs of the compiled rounds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, keys, tree, wire
from fedjax_mem.federated.config import CompressionConfig
from fedjax_mem.federated.model import floats
from fedjax_mem.stages import compress as codecs
from fedjax_mem.stages.compress import Code, Codec, Keys, quantize, random_k, top_k


@functools.lru_cache(maxsize=64)
def layer(config: CompressionConfig) -> Layer:
  """Returns the layer of compression that a config describes."""
  if config.method == 'top_k':
    return top_k(config.compression_ratio)
  if config.method == 'random_k':
    return random_k(config.compression_ratio)
  return quantize(config.quantization_bits)


@functools.lru_cache(maxsize=64)
def codec(config: CompressionConfig) -> Codec:
  """Returns the codec of a config."""
  return codecs.codec_of(config=layer(config))


def dense(update: Any, weight: float) -> bytes:
  """Returns the bytes of a message that is not compressed: all values in float32."""
  return wire.encode(weight, [wire.Floats(codecs.flat(update)[0])])


def from_dense(data: bytes, size: int) -> tuple[jax.Array, float]:
  """Returns (values [D], weight); `ValueError` if the bytes are damaged or of another size."""
  packet = wire.decode(data, [wire.Spec('floats', size, 0)])
  return jnp.asarray(packet.parts[0].values), packet.weight


@functools.lru_cache(maxsize=256)
def decoder(config: CompressionConfig, shapes: codecs.Shapes) -> Callable[[Keys, Code], Any]:
  """Returns the compiled decoder, (draws, code) -> values [D]."""
  made = codec(config)
  return keys.jit(lambda draws, code: made.decode(draws, code, shapes))


def draws(config: CompressionConfig, seed: int, round: int, number: int) -> Keys:
  """Returns the random keys of the codec for client `number` in a round."""
  base = keys.layer_key(keys.seed_key(seed), round, layer(config).name)
  return Keys(keys.role_key(base, 'client', number), keys.role_key(base, 'round'))


def whole(config: CompressionConfig, draws: Keys, code: Code, like: Any) -> Any:
  """Returns the decoded update, a tree of the shapes of `like`."""
  shapes = tuple(x.shape for x in jax.tree.leaves(like))
  return codecs.unflat(decoder(config, shapes)(draws, code), like)


@functools.lru_cache(maxsize=256)
def _encoder(config: CompressionConfig) -> Callable[..., Any]:
  made = codec(config)

  def encode(draws: Keys, update: Any) -> Any:
    x, shapes = codecs.flat(update)
    return made.encode(draws, x, shapes)

  return keys.jit(encode)


class Compressed(NamedTuple):
  """A compressed pytree.

  Attributes:
    data: the compressed bytes, as they would be sent.
    like: shapes and dtypes of the pytree.
    number: number of the call of `compress`, from 0; it selects the random draws.
  """

  data: bytes
  like: Any
  number: int


class ModelCompressor:
  """Compresses pytrees of floats to bytes, and decompresses them.

  >>> compressor = ModelCompressor(CompressionConfig(method='top_k', compression_ratio=0.5))
  >>> sent = compressor.compress({'w': jnp.array([1.0, -4.0, 3.0, 0.5])})
  >>> compressor.decompress(sent)['w'].tolist()
  [0.0, -4.0, 3.0, 0.0]

  Args:
    config: the method.
    seed: seed of random coordinates and roundings; sender and receiver need the same.
  """

  def __init__(self, config: CompressionConfig, *, seed: int = 0):
    if not isinstance(config, CompressionConfig):
      raise ValueError(f'config must be a CompressionConfig, got {config!r}.')
    self.config = config
    self._seed = seed
    self._number = 0
    self._ratio: float | None = None

  def _draws(self, number: int) -> Keys:
    return draws(self.config, self._seed, number, 0)

  def compress(self, gradients: Any) -> Compressed:
    """Returns the pytree compressed.

    Raises:
      ValueError: a leaf is not of finite floats, or there is none.
    """
    gradients = floats(gradients=gradients)
    number, self._number = self._number, self._number + 1
    code = _encoder(self.config)(self._draws(number), gradients)
    data = codecs.to_bytes(code, 1.0)
    self._ratio = len(data) / codecs.dense_size(gradients)
    return Compressed(data, tree.shapes(gradients), number)

  def decompress(self, compressed: Compressed) -> Any:
    """Returns the decompressed pytree: an approximation of the one compressed.

    Raises:
      ValueError: the bytes are damaged, or of another method.
    """
    shapes = tuple(x.shape for x in jax.tree.leaves(compressed.like))
    code, _ = codecs.from_bytes(codec(self.config), compressed.data, shapes)
    return whole(self.config, self._draws(compressed.number), code, compressed.like)

  def get_ratio(self) -> float:
    """Returns compressed over dense bytes of the last call of `compress`, indices included.

    Raises:
      ValueError: nothing was compressed yet.
    """
    if self._ratio is None:
      raise ValueError('compress must be called before there is a ratio, got no call yet.')
    return self._ratio
