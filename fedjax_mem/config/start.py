"""Where a run's parameters start from: a draw, or a file, a run or an array that a user gives.

What is given is known by the hash of its arrays (`model.init_hash`), which is part of the hash of
the experiment; the path to it is not.
"""

import dataclasses
import pathlib
from typing import Any

from fedjax_mem.config.load import Config
from fedjax_mem.core import validate
from fedjax_mem.models import saved


def pinned(config: Config, params: Any = None) -> tuple[Config, saved.Arrays | None]:
  """Returns (the experiment with `model.init_hash`, the arrays that it starts from).

  Without `model.init` and `params` they are the experiment as it is, and None.

  Args:
    config: the experiment.
    params: a tree of parameters, given in place of `model.init`.

  Raises:
    ValueError: both are given, `model.init` cannot be read, or is not what `model.init_hash` says.
  """
  section = config.model
  if params is None and section.init is None:
    return config, None
  if params is None:
    held = _read(section.init or '')
  elif section.init is not None:
    raise ValueError(
      f'params must be left out beside model.init, got both, model.init = {section.init!r}.'
    )
  else:
    held = saved.arrays(params)
  found = saved.digest(held)
  if section.init_hash not in (None, found):
    raise ValueError(
      f'model.init must hold the arrays whose hash is model.init_hash = {section.init_hash!r}, got '
      f'{found!r}: it has changed since.'
    )
  section = dataclasses.replace(section, init_hash=found)
  return dataclasses.replace(config, model=section), held


def _read(path: str) -> saved.Arrays:
  validate.own_files('the server sends the parameters', **{'model.init': path})
  try:
    return saved.read(pathlib.Path(path).expanduser())
  except ValueError as error:
    raise ValueError(f'model.init: {error}') from error
