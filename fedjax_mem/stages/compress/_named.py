"""The codec that is an argument of another: a layer, its name, or a table with its options."""

import inspect
from collections.abc import Mapping
from typing import Any

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.compress._base import Codec, layer_of


def as_layer(made: Any) -> Any:
  """Returns the layer of a `Codec`; anything else as it is."""
  return layer_of(made) if isinstance(made, Codec) else made


def layer(**given: Any) -> Layer:
  """Returns the layer that is given, or that a name or a table {use = name, …} describes.

  A name is that of a codec here, or 'package.module:factory'.

  Args:
    **given: one argument, the codec; its name is used in messages of errors.

  Raises:
    ValueError: none of these, or an unknown or a missing option.
  """
  ((argument, codec),) = given.items()
  if isinstance(codec, Layer):
    return codec
  # Imported here: the factories in this registry import this module.
  from fedjax_mem.stages.compress import COMPRESSION

  options = dict(codec) if isinstance(codec, Mapping) else {'use': codec}
  name = options.pop('use', None)
  if not isinstance(name, str):
    raise ValueError(
      f'{argument} must be a codec, its name, or a table with the name as `use`, got {codec!r}.'
    )
  if ':' in name:
    make = validate.imported(**{argument: name})
  else:
    make = COMPRESSION[validate.one_of(COMPRESSION, **{argument: name})]
  parameters = inspect.signature(make).parameters
  for option in options:
    if option not in parameters:
      raise ValueError(
        f'{argument}.{option} must be among {list(parameters)!r}, got an unknown option of '
        f'{name!r}.{validate.nearest(option, parameters)}'
      )
  missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
  if missing:
    raise ValueError(f'{argument}.{missing[0]} must be given for {name!r}, got none.')
  made: Layer = as_layer(make(**options))
  return made
