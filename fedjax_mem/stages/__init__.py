"""The layers of a round: a room for each concern, a file for each method."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fedjax_mem.stages import (
    aggregate,
    algorithm,
    attack,
    compress,
    masks,
    privacy,
    select,
    weigh,
  )

__all__ = (
  'aggregate',
  'algorithm',
  'attack',
  'compress',
  'masks',
  'privacy',
  'select',
  'weigh',
)


def __getattr__(name: str) -> Any:
  """Imports a room when it is first asked for."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return importlib.import_module(f'{__name__}.{name}')
