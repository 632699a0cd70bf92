"""The trail of calls between modules, of a package that the test makes."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'trail.py'
FILES = {
  'pyproject.toml': (
    '[[tool.importlinter.contracts]]\nid = "rooms"\n'
    'layers = ["toy_house.top", "toy_house.left | toy_house.right", "toy_house.ground"]\n'
  ),
  'toy_house/__init__.py': '',
  'toy_house/top/__init__.py': '',
  'toy_house/top/a.py': (
    'from toy_house.left import b\nfrom toy_house.top import c\n'
    'def run():\n  c.same()\n  b.calls(back)\n  b.calls(back)\n\ndef back(): pass\n'
  ),
  'toy_house/top/c.py': 'def same(): pass\n',
  'toy_house/left/__init__.py': '',
  'toy_house/left/b.py': (
    'from toy_house.right import beside\nfrom toy_house.ground import lazy, low\n'
    'def calls(f):\n  f()\n  beside()\n  sum(low())\n  lazy()\n'
  ),
  'toy_house/right/__init__.py': 'def beside(): pass\n',
  'toy_house/ground/__init__.py': (
    'def low(): return (x for x in range(3))\n\n'
    'def lazy():\n  from toy_house.top import c\n  c.same()\n'
  ),
}


@pytest.fixture
def trail():
  spec = importlib.util.spec_from_file_location('trail', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def house(tmp_path, monkeypatch):
  for name, text in FILES.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in [x for x in sys.modules if x.split('.')[0] == 'toy_house']:
    del sys.modules[name]


def test_each_call_between_modules_is_listed_once_with_its_way(trail, house):
  from toy_house.top import a

  found = trail.Trail(house / 'toy_house')
  found.watch(a.run)
  height = trail.floors(house / 'pyproject.toml')
  assert height == {'ground': 0, 'left': 1, 'right': 1, 'top': 2, '(door)': 3}
  ways = {(str(x), str(y)): trail.kind(x, y, height, house / 'toy_house') for x, y in found.calls}
  assert ways == {
    ('top.a:run', 'top.c:same'): 'inside',
    ('top.a:run', 'left.b:calls'): 'down',
    ('left.b:calls', 'top.a:back'): 'back',
    ('ground:lazy', 'top.c:same'): 'up',
    ('left.b:calls', 'right:beside'): 'beside',
    ('left.b:calls', 'ground:low'): 'down',
    ('left.b:calls', 'ground:lazy'): 'down',
  }
  times = {str(y): n for (_, y), n in found.calls.items()}
  assert times['top.a:back'] == 2
