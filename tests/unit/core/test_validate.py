"""Every refusal names the argument, what it must be and what it got."""

import math
import sys

import pytest

from fedjax_mem.core import validate

NUMBERS = {
  validate.positive: ([1, 0.1, 1e30], [0, -1, math.nan, math.inf, 'x', None, True]),
  validate.non_negative: ([0, 2.5], [-1e-9, math.nan, math.inf, '1', False]),
  validate.fraction: ([0, 1, 0.5], [-0.1, 1.1, math.nan]),
  validate.probability: ([1, 1e-9], [0, 1.1, math.nan]),
  validate.open_fraction: ([0.5], [0, 1, math.nan]),
  validate.integer: ([1, 7], [0, -1, 1.0, True, '3', None, math.nan]),
}


@pytest.mark.parametrize('check', NUMBERS, ids=lambda f: f.__name__)
def test_numbers(check):
  good, bad = NUMBERS[check]
  for value in good:
    assert check(rate=value) == value
  for value in bad:
    with pytest.raises(ValueError, match=r'^rate must be ') as caught:
      check(rate=value)
    assert str(caught.value).endswith(f'got {value!r}.')


def test_integers_within_a_range():
  assert validate.integer(at_least=0, at_most=3, cohort=0) == 0
  for value in (-1, 4):
    with pytest.raises(ValueError, match=r'cohort must be an integer >= 0 and <= 3, got'):
      validate.integer(at_least=0, at_most=3, cohort=value)


def test_choices_come_with_the_nearest():
  with pytest.raises(ValueError) as caught:
    validate.one_of(('vmap', 'chunk'), mode='chunks')
  assert str(caught.value) == (
    "mode must be one of 'vmap', 'chunk', got 'chunks'. Did you mean 'chunk'?"
  )
  assert validate.nearest('xyz', ('vmap',)) == ''


def test_functions():
  assert validate.function(loss=abs) is abs
  with pytest.raises(ValueError, match=r'^loss must be callable, got 3\.$'):
    validate.function(loss=3)


def test_two_names_at_once_are_a_mistake_of_the_caller():
  with pytest.raises(TypeError, match='one keyword argument'):
    validate.positive(a=1, b=2)


MODULE = """
import pathlib
from os import system
from {package}.inner import nearby

pathlib.Path({seen!r}).touch()

def made():
  return 'made'
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
  """Returns (name of a package, the file that an import of its module `methods` makes)."""
  package, seen = f'foreign_{tmp_path.name.replace("-", "_")}', tmp_path / 'seen'
  folder = tmp_path / package
  folder.mkdir()
  (folder / '__init__.py').touch()
  (folder / 'inner.py').write_text('def nearby():\n  return "nearby"\n')
  (folder / 'methods.py').write_text(MODULE.format(package=package, seen=str(seen)))
  monkeypatch.syspath_prepend(str(tmp_path))
  yield package, seen
  for name in [x for x in sys.modules if x.partition('.')[0] == package]:
    del sys.modules[name]


def test_a_module_that_is_not_listed_is_refused_before_it_is_imported(foreign):
  package, seen = foreign
  name = f'{package}.methods:made'
  for listed in ([], [package], [f'{package}.method'], [f'{package}.methods.inner'], ['os']):
    with validate.only_from(listed), pytest.raises(ValueError) as caught:
      validate.imported(**{'stages[1].use': name})
    assert str(caught.value) == (
      f'stages[1].use must be a name of a registry, or of a module that `--allow` lists, got '
      f'{name!r}: start the client with --allow {package}.methods if you trust it.'
    )
    assert not seen.exists()
  assert validate.imported(use=name)() == 'made'  # without the list, as ever: the file can be made
  assert seen.exists()


def test_a_listed_module_gives_what_its_package_defines_and_nothing_that_it_imports(foreign):
  package, _ = foreign
  with validate.only_from([f'{package}.methods']):
    assert validate.imported(use=f'{package}.methods:made')() == 'made'
    assert validate.imported(use=f'{package}.methods:nearby')() == 'nearby'
    with pytest.raises(ValueError, match=r"^use must name a factory that the package .* 'posix'"):
      validate.imported(use=f'{package}.methods:system')


def test_lists_narrow_and_end_with_their_context(foreign):
  package, _ = foreign
  name = f'{package}.methods:made'
  with validate.only_from([f'{package}.methods', 'os']):
    with (
      validate.only_from(['os', 'json']),
      pytest.raises(ValueError, match='--allow'),
    ):
      validate.imported(use=name)
    with validate.only_from(['json']), pytest.raises(ValueError, match='--allow json'):
      validate.imported(use='json:dumps')  # the outer list does not have it
    assert validate.imported(use=name)
  with pytest.raises(KeyError), validate.only_from([]):
    raise KeyError
  assert validate.imported(use='os:getcwd')


@pytest.mark.parametrize('bad', [['os:system'], [''], ['a..b'], ['a b'], 'os'])
def test_lists_hold_names_of_modules(bad):
  with pytest.raises(ValueError, match=r'^allow must '), validate.only_from(bad):
    pass
