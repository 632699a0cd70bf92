"""Secure aggregation: the simulation of its numerics on the device; the real one is `protocol`.

`protocol` and `aggregator` run on the host and need `cryptography`; they are imported by name.
"""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.secure.grid import integers
from fedjax_mem.stages.secure.mask import mask

SECURE: dict[str, Callable[..., Layer]] = {'integers': integers, 'mask': mask}

__all__ = ('SECURE', 'integers', 'mask')
