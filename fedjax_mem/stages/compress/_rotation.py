"""What the codecs on a random rotation share: the block of a rotation, and what holds of its norms.

A rotation (random signs, then a Walsh-Hadamard transform of blocks) makes the values of any update
look normal, so that few bits serve them well.

| layer | adds | unbiased | error over ||x||² | norms |
|---|---|---|---|---|
| `rotate` | yes | exact | 0 | L2 kept |
| `drive` | no | nearly | 0.571 expected, for large blocks | L2 may grow |
| `drive(unbiased=False)` | no | no | 1 - 1 / B at most, 0.363 expected | L2 does not grow |
| `eden` | no | nearly | 0.571, 0.133, 0.0358, 0.00959 expected for 1 to 4 bits | L2 may grow |

The unbiased ones are exactly so for a uniformly random rotation, nearly for this one. Each client
rotates by a seed of its own, which the server derives, so that errors average out over clients;
`rotate` itself, whose codes add, is one rotation for all. Blocks are powers of two, chosen so that
padding costs less than 2% of any vector of 6,400 values or more.
"""

from fedjax_mem.core import Bound, Bounds, validate
from fedjax_mem.kernels.codes import hadamard
from fedjax_mem.stages.compress._base import (
  Shapes,
  size,
  unbounded,
)

GROWS = unbounded('the scale that makes it unbiased may enlarge them')


ONLY_L2 = Bounds(lambda ctx, bound: Bound(l2=bound.l2), 'a rotation keeps the L2 norm alone')


def check_block(block: int | None) -> None:
  if block is not None:
    validate.integer(block=block)
    if block & (block - 1):
      raise ValueError(f'block must be a power of two, got {block!r}.')


def block_of(shapes: Shapes, block: int | None) -> int:
  return hadamard.block_size(size(shapes)) if block is None else block
