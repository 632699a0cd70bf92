"""Masks on the device: the numerics of secure aggregation; `secagg` is the real protocol."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.masks.integers import integers
from fedjax_mem.stages.masks.mask import mask

SECURE: dict[str, Callable[..., Layer]] = {'integers': integers, 'mask': mask}

__all__ = ('SECURE', 'integers', 'mask')
