"""Algorithms: local training on the client, the optimizer step on the server."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.algorithm._base import Sgd, masked_mean_loss
from fedjax_mem.stages.algorithm.dp_sgd import dp_sgd
from fedjax_mem.stages.algorithm.fedavg import fedavg
from fedjax_mem.stages.algorithm.fedsgd import fedsgd

ALGORITHMS: dict[str, Callable[..., Layer]] = {
  'fedavg': fedavg,
  'fedsgd': fedsgd,
  'dp_sgd': dp_sgd,
}

__all__ = ('ALGORITHMS', 'Sgd', 'dp_sgd', 'fedavg', 'fedsgd', 'masked_mean_loss')
