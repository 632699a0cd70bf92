"""Where tests are: files of unit tests mirror the package, and what has none is listed."""

import ast
import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
from reference import tiers

import fedjax_mem as fm
import fedjax_mem.core
import fedjax_mem.report

ROOT = Path(__file__).parents[2]
LOADED_BY_THE_ENGINE = tuple(
  f'fedjax_mem.deploy.{name}' for name in ('admission', 'flare', 'guards', 'parent')
)
UNIT, PACKAGE = ROOT / 'tests' / 'unit', ROOT / 'fedjax_mem'


def modules() -> set[str]:
  files = (p for p in PACKAGE.rglob('*.py') if not p.stem.startswith('__') and p.stem != '_version')
  return {p.relative_to(PACKAGE).with_suffix('').as_posix() for p in files}


def mirrored() -> set[str]:
  files = UNIT.rglob('*.py')
  return {(p.parent / p.stem.removeprefix('test_')).relative_to(UNIT).as_posix() for p in files}


def listed() -> list[str]:
  """Returns the modules that docs/testing.md says have no file of their own."""
  page = (ROOT / 'docs' / 'testing.md').read_text()
  section = page.partition('## Modules without a file of their own')[2].partition('\n## ')[0]
  return [name for row in re.findall(r'^\|(.*?)\|', section, re.M) for name in _names(row)]


def _names(cell: str) -> list[str]:
  return re.findall(r'`([^`]+)`', cell)


def test_every_file_of_unit_tests_has_a_module_of_its_path():
  assert mirrored() - modules() == set()


def test_every_module_has_a_file_or_is_listed_with_the_reason():
  names = listed()
  assert sorted(names) == sorted(modules() - mirrored())


def test_every_test_is_in_a_part_of_the_whole_run():
  parts = re.findall(r' tests --rest *(.*)$', (ROOT / '.ci' / 'run').read_text(), re.M)
  assert parts == ['-n 3', '--devices 8']
  folders = [p.name for p in (ROOT / 'tests').iterdir() if any(p.glob('**/test_*.py'))]
  for one in itertools.product((False, True), (1, 2, 3, 8), folders, (False, True)):
    test = tiers.Test(*one)
    rest = tiers.runs(test, 2, rest=True) or tiers.runs(test, 8, rest=True)
    assert tiers.runs(test, 2) or rest, test
    assert tiers.runs(test, 8, every=True)


def test_no_name_is_public_twice():
  homes: dict[str, str] = {}
  for found in (None, *pkgutil.walk_packages(fm.__path__, 'fedjax_mem.')):
    if found is not None and ('.builders.' in found.name or found.name in LOADED_BY_THE_ENGINE):
      continue  # read by tensorflow-datasets alone, or by NVIDIA FLARE, which need not be there
    module = fm if found is None else importlib.import_module(found.name)
    for name in vars(module).get('__all__', ()):
      if (name, module.__name__) == ('load', 'fedjax_mem.data'):
        continue  # `fm.data.load` is of data, `fm.load` of a run
      home = homes.setdefault(name, module.__name__)
      assert home == module.__name__, f'{name} is in __all__ of {home} and {module.__name__}'


def test_every_published_name_is_there():
  assert sorted(fm.__all__) == sorted(set(fm.__all__))
  for name in fm.__all__:
    assert getattr(fm, name) is not None
  assert all(getattr(fm.stages, room).__name__.endswith(room) for room in fm.stages.__all__)
  for module in (fm, fm.core, fm.data, fm.report, fm.stages):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
      module.nothing  # noqa: B018


@pytest.mark.parametrize('room', ['core', 'data', 'report'])
def test_what_a_room_imports_on_first_use_is_what_linters_are_told(room):
  module = importlib.import_module(f'fedjax_mem.{room}')
  body = ast.parse(Path(module.__file__).read_text()).body
  told = [x for part in body if isinstance(part, ast.If) for x in part.body]
  assert told
  for line in told:
    home = importlib.import_module(line.module)
    for name in line.names:
      assert getattr(module, name.asname or name.name) is getattr(home, name.name)


def test_what_the_page_links_to_is_there():
  page = (ROOT / 'docs' / 'testing.md').read_text()
  linked = re.findall(r'\]\(([^)#]+)\)', page)
  assert linked and [x for x in linked if not (ROOT / 'docs' / x).exists()] == []


def test_the_tests_that_the_page_names_are_there():
  page = (ROOT / 'docs' / 'testing.md').read_text().partition('## What moved where')[0]
  named = re.findall(r'`(tests/[^`*]+)`', page)
  assert named and [name for name in named if not (ROOT / name).exists()] == []


METHODS = [p for p in (PACKAGE / 'stages').glob('*/*.py') if not p.stem.startswith('_')]


@pytest.mark.parametrize('path', METHODS, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_a_file_of_a_room_is_one_method_and_imports_no_other(path):
  room = f'fedjax_mem.stages.{path.parent.name}'
  body = ast.parse(path.read_text()).body
  published = set(importlib.import_module(room).__all__)
  factories = {p.stem for p in METHODS if p.parent == path.parent}
  made = {n.name for n in body if isinstance(n, ast.FunctionDef)} & published & factories
  assert made == {path.stem}
  froms = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
  taken = {f'{n.module}.{a.name}' for n in froms for a in n.names}
  assert not [x for x in taken if x.startswith(f'{room}.') and x.split('.')[3] in factories]


def test_functions_have_at_most_60_lines_and_modules_400():
  kinds = ast.FunctionDef, ast.AsyncFunctionDef
  for path in (p for folder in ('fedjax_mem', 'scripts') for p in (ROOT / folder).rglob('*.py')):
    text = path.read_text()
    assert text.count('\n') <= 400, path
    long = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
    assert not [n.name for n in long if n.end_lineno - n.lineno >= 60], path


def test_what_a_room_of_stages_keeps_to_itself_is_imported_nowhere_else():
  for path in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('fedjax_mem.stages.'):
        for name in (f'{node.module}.{a.name}' for a in node.names):
          room, kit = name.split('.')[2:4] if name.count('.') > 2 else ('', '')
          inside = path.is_relative_to(PACKAGE / 'stages' / room)
          assert inside or not kit.startswith('_'), f'{path} imports {name}'


def test_runs_that_take_turns_have_all_tests_among_them_and_each_something_of_every_test():
  plain, two = ['a.py::test_plain'], [f'a.py::test_two[{x}]' for x in 'pq']
  many = [f'b.py::test_many[{x}-{y}]' for x in range(7) for y in 'uv']
  suite = [f'test_contract.py::test_{x}[A-{y}]' for x in 'mn' for y in range(5)]
  made = [tiers.in_turn([*plain, *two, *many, *suite], turn, 3) for turn in range(3)]
  for one in made:
    assert set(plain) <= one and len(one & set(two)) == 1 and 4 <= len(one & set(many)) <= 5
    cases = [
      {tiers.case(x) for x in one & set(suite[:5])},
      {tiers.case(x) for x in one & set(suite[5:])},
    ]
    assert cases[0] == cases[1] and 1 <= len(cases[0]) <= 2
  assert set.union(*made) == {*plain, *two, *many, *suite}


def test_the_sample_for_further_interpreters_has_a_test_of_each_file_and_a_case_of_each_registry():
  seen: set[str] = set()
  unit, suite = tiers.Test(False, 1, 'unit'), tiers.Test(False, 1, 'contract', True)
  sampled = lambda test, name: tiers.sampled(test, name, seen, ('WEIGHINGS-equal',))
  assert sampled(unit, 'a.py::test_b[c]') and not sampled(unit, 'a.py::test_d')
  assert sampled(unit, 'e.py::test_b') and not sampled(tiers.Test(False, 1, 'oracle'), 'f.py::test')
  for name, wanted in (('equal]', True), ('equal-chunk]', True), ('equals]', False), ('a]', False)):
    assert sampled(suite, f'test_contract.py::test[WEIGHINGS-{name}') == wanted
