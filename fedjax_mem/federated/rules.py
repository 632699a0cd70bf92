"""Robust rules of the server: layers of `stages.aggregate`."""

from fedjax_mem.core import Layer
from fedjax_mem.federated.config import ServerConfig
from fedjax_mem.stages.aggregate import AGGREGATION


def of(config: ServerConfig) -> tuple[Layer, ...]:
  """Returns the robust rule of a config with its options, or () if updates are only added.

  Raises:
    ValueError: an option is unknown, or the rule refuses it.
  """
  if not config.aggregation.robust:
    if config.options:
      raise ValueError(
        f'options must be left out for {config.aggregation.value!r}, got {config.options!r}.'
      )
    return ()
  make = AGGREGATION[config.aggregation.value]
  try:
    return (make(**(config.options or {})),)
  except TypeError as error:
    raise ValueError(
      f'options must be those of {config.aggregation.value!r}, got {config.options!r}: {error}'
    ) from error
