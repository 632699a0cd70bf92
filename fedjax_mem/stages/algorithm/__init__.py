"""Algorithms: local training on the client, the optimizer step on the server."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.algorithm._base import Sgd, masked_mean_loss
from fedjax_mem.stages.algorithm.dp_sgd import dp_sgd
from fedjax_mem.stages.algorithm.fedavg import fedavg
from fedjax_mem.stages.algorithm.feddyn import feddyn
from fedjax_mem.stages.algorithm.fednova import fednova
from fedjax_mem.stages.algorithm.fedprox import fedprox
from fedjax_mem.stages.algorithm.fedsgd import fedsgd
from fedjax_mem.stages.algorithm.mime import mime
from fedjax_mem.stages.algorithm.mime_lite import mime_lite
from fedjax_mem.stages.algorithm.scaffold import scaffold

ALGORITHMS: dict[str, Callable[..., Layer]] = {
  'fedavg': fedavg,
  'fedsgd': fedsgd,
  'dp_sgd': dp_sgd,
  'fedprox': fedprox,
  'scaffold': scaffold,
  'fednova': fednova,
  'feddyn': feddyn,
  'mime': mime,
  'mime_lite': mime_lite,
}

__all__ = (
  'ALGORITHMS',
  'Sgd',
  'dp_sgd',
  'fedavg',
  'feddyn',
  'fednova',
  'fedprox',
  'fedsgd',
  'masked_mean_loss',
  'mime',
  'mime_lite',
  'scaffold',
)
