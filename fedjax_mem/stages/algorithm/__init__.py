"""What a client computes from its examples, and what the server makes of the aggregate."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.algorithm.fedavg import fedavg
from fedjax_mem.stages.algorithm.fedsgd import fedsgd

ALGORITHMS: dict[str, Callable[..., Layer]] = {'fedavg': fedavg, 'fedsgd': fedsgd}

__all__ = ('ALGORITHMS', 'fedavg', 'fedsgd')
