"""The pages of the API reference: each names what `__all__` of a room names.

The names are read from the source, so nothing is imported; mkdocstrings takes the docstrings.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'fedjax_mem'
METHODS = ('algorithm', 'select', 'weigh', 'privacy', 'compress', 'masks', 'aggregate', 'attack')
RUNS = (
  *('Config', 'load_config', 'run', 'resume', 'sweep', 'audit'),
  *('Result', 'Interrupted', 'RunFailed'),
)
ENGINE = ('Simulation', 'Execution', 'simulate', 'Applied', 'apply')


def public(path: Path) -> list[str]:
  """Returns the names in `__all__` of a module, read from its source.

  Raises:
    ValueError: it has no `__all__` that is a tuple of strings.
  """
  for node in ast.parse(path.read_text('utf-8')).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
      names = ast.literal_eval(node.value)
      return [name for name in names if not name.startswith('_')]
  raise ValueError(f'{path} must have __all__, got none.')


def _page(title: str, module: str, names: list[str], told: str = '') -> str:
  """Returns a page: the module's docstring, then each name."""
  parts = [f'# {title}\n', told]
  if not told:
    options = '    options:\n      members: false\n      show_root_heading: false\n'
    parts.append(f'::: fedjax_mem.{module}\n{options}')
  home = f'{module}.' if module else ''
  for name in names:
    # A method has the name of its module, which says where it comes from: both are shown.
    path = PACKAGE.joinpath(*module.split('.'), name)
    alone = bool(module) and (path.is_dir() or path.with_suffix('.py').exists())
    only = f'    options:\n      members: [{name}]\n' if alone else ''
    parts.append(f'::: fedjax_mem.{home}{name}\n{only}')
  return '\n'.join(parts)


def pages() -> dict[str, str]:
  """Returns the text of each page, by its place in the site."""
  every = public(PACKAGE / '__init__.py')
  # A package, or a module with `__all__` of its own; `run` and `apply` are functions.
  rooms = {x: _source(x) for x in every if x not in (*RUNS, *ENGINE, 'stages') and _source(x)}
  rest = [name for name in every if name not in (*rooms, *RUNS, *ENGINE, 'stages')]
  found = {
    'api/runs.md': _page('Runs', '', list(RUNS), 'What runs a configuration, and what is left.\n'),
    'api/engine.md': _page('The engine', '', list(ENGINE), 'Rounds composed in Python.\n'),
    'api/protocol.md': _page(
      'The protocol of a round', '', rest, 'What a layer is made of, and the facts it may state.\n'
    ),
  }
  for room, source in rooms.items():
    found[f'api/{room}.md'] = _page(f'fm.{room}', room, public(source))
  for room in METHODS:
    names = public(PACKAGE / 'stages' / room / '__init__.py')
    found[f'api/stages_{room}.md'] = _page(f'fm.stages.{room}', f'stages.{room}', names)
  sections = [name for name in _classes('config/sections.py') if name.endswith('Section')]
  told = 'The sections of a configuration file, key by key.\n\n'
  text = _page('Configuration, key by key', 'config.sections', sections, told)
  found['api/configuration.md'] = text
  return found


def _source(name: str) -> Path | None:
  """Returns the source of a room of the package, or None if there is no such room."""
  places = (PACKAGE / name / '__init__.py', PACKAGE / f'{name}.py')
  return next((place for place in places if place.exists()), None)


def _classes(path: str) -> list[str]:
  """Returns the names of the classes of a module, but for `Section`, their base."""
  tree = ast.parse((PACKAGE / path).read_text('utf-8'))
  return [x.name for x in tree.body if isinstance(x, ast.ClassDef) and x.name != 'Section']
