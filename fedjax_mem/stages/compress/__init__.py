"""Codecs as layers: fewer bytes from clients to the server, and back; each counts its bytes."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.compress.chain import chain
from fedjax_mem.stages.compress.codec import Codec, codec_of, dense_size, total_bytes
from fedjax_mem.stages.compress.downlink import downlink
from fedjax_mem.stages.compress.error_feedback import error_feedback
from fedjax_mem.stages.compress.low_rank import low_rank, power_sgd
from fedjax_mem.stages.compress.quantize import quantize, sign, ternary
from fedjax_mem.stages.compress.random_k import random_k
from fedjax_mem.stages.compress.rotate import drive, eden, rotate
from fedjax_mem.stages.compress.top_k import top_k

COMPRESSION: dict[str, Callable[..., Layer]] = {
  'top_k': top_k,
  'random_k': random_k,
  'quantize': quantize,
  'sign': sign,
  'ternary': ternary,
  'rotate': rotate,
  'drive': drive,
  'eden': eden,
  'low_rank': low_rank,
  'power_sgd': power_sgd,
  'error_feedback': error_feedback,
  'chain': chain,
  'downlink': downlink,
}

__all__ = (
  'COMPRESSION',
  'Codec',
  'chain',
  'codec_of',
  'dense_size',
  'downlink',
  'drive',
  'eden',
  'error_feedback',
  'low_rank',
  'power_sgd',
  'quantize',
  'random_k',
  'rotate',
  'sign',
  'ternary',
  'top_k',
  'total_bytes',
)
