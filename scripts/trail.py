"""Lists the calls between modules that one configuration makes, from its file to a compiled round.

python scripts/trail.py configs/digits_dp.toml                 every call, with both rooms
python scripts/trail.py configs/digits_dp.toml --summary       only the counts
python scripts/trail.py configs/digits_dp.toml --tree DIR      the package of another checkout

A call is a pair of functions in two modules, however often it is made; the configuration runs for
one round. A room is a folder of the package, and lies above another as pyproject.toml has it. A
call of a room above is 'up' if its module imports what it calls, and 'back' if it was handed the
function, such as a side of a layer.
"""

import argparse
import ast
import collections
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Place(NamedTuple):
  """A function of the package: its room, its module without the package's name, its own name."""

  room: str
  module: str
  function: str

  def __str__(self) -> str:
    return f'{self.module}:{self.function}'


def floors(project: Path) -> dict[str, int]:
  """Returns room -> its floor, the lowest 0, from the layers of the import contract."""
  contracts = tomllib.loads(project.read_text())['tool']['importlinter']['contracts']
  layers = next(x['layers'] for x in contracts if x['id'] == 'rooms')
  rows = [x.replace(' ', '').split('|') for x in layers]
  found = {x.split('.')[-1]: i for i, row in enumerate(reversed(rows)) for x in row}
  return {**found, '(door)': len(rows)}


class Trail:
  """Collects the calls between modules below a folder."""

  def __init__(self, package: Path):
    self._package = str(package) + '/'
    self._known: dict[Any, Place | None] = {}
    self.calls: collections.Counter[tuple[Place, Place]] = collections.Counter()

  def _place(self, frame: FrameType) -> Place | None:
    code = frame.f_code
    if code not in self._known:
      # A page's template compiles to functions as well, but is no module.
      source = code.co_filename.endswith('.py') and code.co_name != '<module>'
      inside = source and code.co_filename.startswith(self._package)
      path = code.co_filename[len(self._package) : -len('.py')]
      room = path.split('/')[0] if '/' in path else '(door)'
      module = path.removesuffix('/__init__').replace('/', '.')
      # A generator that another module draws from is a part of the function that made it.
      name = code.co_qualname.removesuffix('.<locals>.<genexpr>')
      self._known[code] = Place(room, module, name) if inside else None
    return self._known[code]

  def watch(self, work: Callable[[], Any]) -> None:
    """Does some work, and notes its calls."""
    sys.setprofile(self._note)
    try:
      work()
    finally:
      sys.setprofile(None)

  def _note(self, frame: FrameType, event: str, arg: Any) -> None:
    """Notes one call, as `sys.setprofile` tells of it."""
    if event != 'call':
      return
    here, back = self._place(frame), frame.f_back
    while here is not None and back is not None:
      caller = self._place(back)
      if caller is not None:
        if caller.module != here.module:
          self.calls[caller, here] += 1
        return
      back = back.f_back


def follow(config: str, tree: Path) -> Trail:
  """Returns the trail of one round of a configuration, by the package in a checkout."""
  sys.path.insert(0, str(tree))
  import fedjax_mem as fm

  trail = Trail(tree / 'fedjax_mem')
  with tempfile.TemporaryDirectory() as out:
    trail.watch(lambda: fm.run(fm.load_config(config, ['rounds=1']), out=out, quiet=True))
  return trail


def kind(caller: Place, callee: Place, height: dict[str, int], package: Path) -> str:
  """Returns where a call goes: 'down', 'up', 'back', 'beside' (of one floor) or 'inside' a room."""
  if caller.room == callee.room:
    return 'inside'
  step = height[callee.room] - height[caller.room]
  if step > 0:
    return 'up' if imports(caller, callee, package) else 'back'
  return 'down' if step < 0 else 'beside'


def imports(caller: Place, callee: Place, package: Path) -> bool:
  """Returns whether the caller's module imports the callee's, or something of it, anywhere."""
  path = package / caller.module.replace('.', '/')
  source = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
  wanted, found = f'{package.name}.{callee.module}', set()
  for node in ast.walk(ast.parse(source.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      found |= {node.module, *(f'{node.module}.{x.name}' for x in node.names)}
    elif isinstance(node, ast.Import):
      found |= {x.name for x in node.names}
  return wanted in found


def main() -> None:
  """Prints the trail."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('config', help='a file of configs/')
  parser.add_argument('--tree', type=Path, default=Path(__file__).resolve().parents[1])
  parser.add_argument('--summary', action='store_true', help='only the counts')
  given = parser.parse_args()
  tree = given.tree.resolve()
  height = floors(tree / 'pyproject.toml')
  trail = follow(given.config, tree)
  rows = [
    (kind(*pair, height, tree / 'fedjax_mem'), *pair, times) for pair, times in trail.calls.items()
  ]
  table = Table('', 'room', 'caller', 'room', 'callee', 'times')
  for way, caller, callee, times in rows:
    table.add_row(way, caller.room, str(caller), callee.room, str(callee), str(times))
  console = Console(width=None if sys.stdout.isatty() else 200)
  if not given.summary:
    console.print(table)
  counted = collections.Counter(way for way, *_ in rows)
  modules = {x.module for _, *pair, _ in rows for x in pair}
  words = ', '.join(f'{counted[x]} {x}' for x in ('down', 'beside', 'inside', 'back', 'up'))
  console.print(f'{len(rows)} calls between {len(modules)} modules: {words}.')


if __name__ == '__main__':
  main()
