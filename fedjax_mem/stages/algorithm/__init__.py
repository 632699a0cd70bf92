"""What a client computes from its examples, and what the server makes of the aggregate."""

from fedjax_mem.stages.algorithm.fedavg import fedavg
from fedjax_mem.stages.algorithm.fedsgd import fedsgd

ALGORITHMS = {'fedavg': fedavg, 'fedsgd': fedsgd}

__all__ = ('ALGORITHMS', 'fedavg', 'fedsgd')
