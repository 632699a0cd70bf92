"""Codecs as layers: messages between clients and server in fewer bytes, which are counted."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.compress._base import (
  KEPT,
  Code,
  Codec,
  Exchange,
  Keys,
  Shapes,
  codec_of,
  dense_size,
  flat,
  from_bytes,
  layer_of,
  nbytes,
  parts_of,
  reported,
  size,
  to_bytes,
  total_bytes,
  unbounded,
  unflat,
)
from fedjax_mem.stages.compress._named import as_layer
from fedjax_mem.stages.compress._tap import tapped
from fedjax_mem.stages.compress.chain import chain
from fedjax_mem.stages.compress.downlink import downlink
from fedjax_mem.stages.compress.drive import drive
from fedjax_mem.stages.compress.eden import eden
from fedjax_mem.stages.compress.error_feedback import error_feedback
from fedjax_mem.stages.compress.low_rank import low_rank
from fedjax_mem.stages.compress.power_sgd import power_sgd
from fedjax_mem.stages.compress.quantize import quantize
from fedjax_mem.stages.compress.random_k import random_k
from fedjax_mem.stages.compress.rotate import rotate
from fedjax_mem.stages.compress.sign import sign
from fedjax_mem.stages.compress.ternary import ternary
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
  'KEPT',
  'Code',
  'Codec',
  'Exchange',
  'Keys',
  'Shapes',
  'as_layer',
  'chain',
  'codec_of',
  'dense_size',
  'downlink',
  'drive',
  'eden',
  'error_feedback',
  'flat',
  'from_bytes',
  'layer_of',
  'low_rank',
  'nbytes',
  'parts_of',
  'power_sgd',
  'quantize',
  'random_k',
  'reported',
  'rotate',
  'sign',
  'size',
  'tapped',
  'ternary',
  'to_bytes',
  'top_k',
  'total_bytes',
  'unbounded',
  'unflat',
)
