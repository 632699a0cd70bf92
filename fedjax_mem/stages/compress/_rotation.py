"""What the codecs with a random rotation share: the size of its blocks, and its bounds of norms.

A rotation (random signs, then a Walsh-Hadamard transform of blocks) makes the values of any update
nearly normal, so that few bits are enough to encode them.

| layer | adds | unbiased | error over ||x||² | norms |
|---|---|---|---|---|
| `rotate` | yes | exact | 0 | L2 kept |
| `drive` | no | nearly | 0.571 expected, for large blocks | L2 may grow |
| `drive(unbiased=False)` | no | no | 1 - 1 / B at most, 0.363 expected | L2 does not grow |
| `eden` | no | nearly | 0.571, 0.133, 0.0358, 0.00959 expected for 1 to 4 bits | L2 may grow |

The unbiased codecs would be exactly unbiased under a uniformly random rotation; under this one they
are nearly so. Each client rotates with its own seed, which the server derives, so that errors
average out over clients. `rotate`, whose codes add, uses one rotation for all clients. Blocks are
powers of two, chosen so that padding costs less than 2% of any vector of 6,400 values or more.
"""

from fedjax_mem.core import Bound, Bounds
from fedjax_mem.kernels.codes import hadamard
from fedjax_mem.stages.compress._base import (
  Shapes,
  size,
  unbounded,
)

GROWS = unbounded('the scale that makes it unbiased may enlarge them')
ONLY_L2 = Bounds(lambda ctx, bound: Bound(l2=bound.l2), 'a rotation keeps the L2 norm alone')


def check_block(block: int | None) -> None:
  """Raises `ValueError` unless the block is a power of two or None."""
  if block is not None:
    hadamard.checked(block)


def block_of(shapes: Shapes, block: int | None) -> int:
  """Returns the size of a block: as given, or chosen by the number of values."""
  return hadamard.block_size(size(shapes)) if block is None else block
