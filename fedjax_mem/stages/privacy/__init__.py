"""Differential privacy as layers: clipping on the client, noise on the server or on the client."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.privacy.adaptive_clip import adaptive_clip
from fedjax_mem.stages.privacy.central import central
from fedjax_mem.stages.privacy.distributed import distributed
from fedjax_mem.stages.privacy.laplace import laplace
from fedjax_mem.stages.privacy.local import local
from fedjax_mem.stages.privacy.local_discrete import local_discrete
from fedjax_mem.stages.privacy.local_laplace import local_laplace
from fedjax_mem.stages.privacy.matrix_factorization import matrix_factorization
from fedjax_mem.stages.privacy.tree import tree

PRIVACY: dict[str, Callable[..., Layer | tuple[Layer, ...]]] = {
  'central': central,
  'laplace': laplace,
  'adaptive_clip': adaptive_clip,
  'local': local,
  'local_laplace': local_laplace,
  'local_discrete': local_discrete,
  'distributed': distributed,
  'tree': tree,
  'matrix_factorization': matrix_factorization,
}

__all__ = (
  'PRIVACY',
  'adaptive_clip',
  'central',
  'distributed',
  'laplace',
  'local',
  'local_discrete',
  'local_laplace',
  'matrix_factorization',
  'tree',
)
