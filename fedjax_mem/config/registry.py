"""From names in a configuration to factories: those of the registries, or a user's own."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax

from fedjax_mem.core import Layer, factories, validate
from fedjax_mem.core.factories import Wanted
from fedjax_mem.models.base import Model
from fedjax_mem.stages.aggregate import AGGREGATION
from fedjax_mem.stages.attack import ATTACKS
from fedjax_mem.stages.compress import COMPRESSION, Codec
from fedjax_mem.stages.masks import SECURE
from fedjax_mem.stages.privacy import PRIVACY

# What keys take. A stage, or a sampler, may be several layers; a codec becomes one.
LAYER = Wanted((Layer,), 'a Layer')
SAMPLER = Wanted((Layer, tuple), 'a layer that draws the cohort')
STAGE = Wanted((Layer, Codec, tuple), 'a Layer, layers or a codec')
MODEL = Wanted((Model,), 'a Model')
OPTIMIZER = Wanted((optax.GradientTransformation,), 'an optax transformation')

# Layers that a `[[stages]]` table may name.
LAYERS: dict[str, Callable[..., Any]] = {
  **ATTACKS,
  **PRIVACY,
  **COMPRESSION,
  **SECURE,
  **AGGREGATION,
}


def factory(
  key: str, name: str, known: Mapping[str, Callable[..., Any]], wanted: Wanted | None = None
) -> Callable[..., Any]:
  """Returns the factory of that name, from a registry or from 'package.module:factory'.

  Args:
    key: key of the configuration that holds the name, for error messages.
    name: a key of `known`, or 'package.module:factory'.
    known: the registry.
    wanted: what the key takes; None: anything.

  Raises:
    ValueError: there is no such name, module or factory, or it says that it makes something else.
  """
  if ':' not in name:
    return known[validate.one_of(known, **{key: name})]
  make = validate.imported(**{key: name})
  if wanted is not None:
    factories.check_annotation(wanted, make, **{key: name})
  return make


def call(key: str, make: Callable[..., Any], options: Mapping[str, Any], **given: Any) -> Any:
  """Returns `make(**given, **options)`; options that the factory does not take are refused.

  Args:
    key: section of the configuration, for error messages.
    make: a factory.
    options: options in the configuration.
    **given: arguments that the program sets; those that the factory does not take are left out.

  Raises:
    ValueError: an unknown or a missing option, or an error of the factory itself; each names the
      section.
  """
  parameters = factories.parameters(make, **{key: getattr(make, '__name__', repr(make))})
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
  for name in factories.missing(parameters, arguments):
    of = getattr(make, '__name__', make)
    raise ValueError(f'{key}.options.{name} must be given for {of!r}, got none.')
  with naming(key):
    return make(**arguments)


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
  """Puts the section before what a plain `ValueError` from within says, unless it is there.

  Args:
    key: the section of the configuration.
  """
  try:
    yield
  except OverflowError as error:  # a number that no float or array can hold
    raise ValueError(f'{key}: a number must be smaller: {error}.') from error
  except ValueError as error:
    if type(error) is not ValueError or key in str(error):
      raise
    raise ValueError(f'{key}: {error}') from error


def made(
  key: str,
  field: str,
  name: str,
  known: Mapping[str, Callable[..., Any]],
  options: Mapping[str, Any],
  wanted: Wanted,
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
    wanted: what the section takes.
    **given: as in `call`.

  Raises:
    ValueError: as `factory` and `call`, or something else was made.
  """
  value = call(key, factory(f'{key}.{field}', name, known, wanted), options, **given)
  factories.check_made(wanted, value, **{f'{key}.{field}': name})
  return value
