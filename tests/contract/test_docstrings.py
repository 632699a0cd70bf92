"""Docstrings show how what is published is used, and what they show is true."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_mem as fm

ROOMS = [fm, fm.optim, fm.mechanisms, fm.models, fm.account, fm.data, fm.federated]
GIVEN = {'fm': fm, 'jax': jax, 'jnp': jnp, 'np': np}


def published():
  """Returns name -> function or class: factories of methods, and the functions of other rooms."""
  found = {}
  for room in ROOMS:
    for name in room.__all__:
      item = getattr(room, name)
      if inspect.isfunction(item):
        found[f'{room.__name__}.{name}'] = item
  rooms = [getattr(fm.stages, name) for name in fm.stages.__all__]
  for room in [*rooms, fm.optim, fm.mechanisms]:
    for kind, entries in vars(room).items():
      if kind.isupper() and isinstance(entries, dict):
        made = {f'{room.__name__}.{name}': item for name, item in entries.items()}
        found |= {name: item for name, item in made.items() if callable(item)}
  return found


def modules():
  """Returns the modules whose source has an example."""
  names = [x.name for x in pkgutil.walk_packages(fm.__path__, 'fedjax_mem.')]
  sources = {n: importlib.util.find_spec(n).origin for n in names}
  return sorted(n for n, path in sources.items() if '>>> ' in Path(path).read_text())


# Each example of a method compiles a round, and those of the accountant compose many.
COMPILES = tuple(
  f'fedjax_mem.{room}.'
  for room in ('account', 'engine', 'federated', 'kernels', 'runner', 'stages', 'studies')
)
EXAMPLES = [
  pytest.param(name, marks=(pytest.mark.slow,) * name.startswith(COMPILES)) for name in modules()
]


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(name):
  module = importlib.import_module(name)
  globs = GIVEN | vars(module)
  failed, tried = doctest.testmod(module, globs=globs, optionflags=doctest.ELLIPSIS)
  assert tried and not failed


@pytest.mark.parametrize('name', published())
def test_a_published_factory_shows_its_use(name):
  lines = (published()[name].__doc__ or '').count('>>> ')
  assert 1 <= lines <= 6, f'{name} has {lines} lines of examples.'
