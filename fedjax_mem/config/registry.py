"""From names in a configuration to factories: those of the registries, or a user's own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.stages.aggregate import AGGREGATION
from fedjax_mem.stages.attack import ATTACKS
from fedjax_mem.stages.compress import COMPRESSION
from fedjax_mem.stages.masks import SECURE
from fedjax_mem.stages.privacy import PRIVACY

# Layers that a `[[stages]]` table may name.
LAYERS: dict[str, Callable[..., Any]] = {
  **ATTACKS,
  **PRIVACY,
  **COMPRESSION,
  **SECURE,
  **AGGREGATION,
}


def factory(key: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
  """Returns the factory of that name, from a registry or from 'package.module:factory'.

  Args:
    key: key of the configuration that holds the name, for error messages.
    name: a key of `known`, or 'package.module:factory'.
    known: the registry.

  Raises:
    ValueError: there is no such name, module or factory.
  """
  if ':' not in name:
    return known[validate.one_of(known, **{key: name})]
  return validate.imported(**{key: name})


def call(key: str, make: Callable[..., Any], options: Mapping[str, Any], **given: Any) -> Any:
  """Returns `make(**given, **options)`; options that the factory does not take are refused.

  Args:
    key: section of the configuration, for error messages.
    make: a factory.
    options: options in the configuration.
    **given: arguments that the program sets; those that the factory does not take are left out.

  Raises:
    ValueError: an unknown or a missing option, or an error of the factory itself.
  """
  parameters = inspect.signature(make).parameters
  open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  taken = {name: x for name, x in given.items() if open_ended or name in parameters}
  free = [name for name in parameters if name not in taken]
  for name in options:
    if name in taken:
      raise ValueError(f'{key}.options.{name} must be left out: the experiment sets it.')
    if name not in parameters and not open_ended:
      raise ValueError(
        f'{key}.options must be among {free!r}, got {name!r}.{validate.nearest(name, free)}'
      )
  arguments = {**taken, **options}
  for name, parameter in parameters.items():
    missing = parameter.default is parameter.empty and name not in arguments
    if missing and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
      of = getattr(make, '__name__', make)
      raise ValueError(f'{key}.options.{name} must be given for {of!r}, got none.')
  return make(**arguments)


def made(
  key: str,
  field: str,
  name: str,
  known: Mapping[str, Callable[..., Any]],
  options: Mapping[str, Any],
  /,
  **given: Any,
) -> Any:
  """Returns what the factory that a section names makes: `factory`, then `call`.

  Args:
    key: the section of the configuration, for messages.
    field: of the section, the one that holds the name.
    name: as in `factory`.
    known: the registry.
    options: as in `call`.
    **given: as in `call`.

  Raises:
    ValueError: as `factory` and `call`.
  """
  return call(key, factory(f'{key}.{field}', name, known), options, **given)
