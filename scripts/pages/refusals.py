"""Writes docs/refusals.md, what a plan refuses and why, from the source of the checks.

python scripts/pages/refusals.py            writes the page
python scripts/pages/refusals.py --check    exit code 1 if the page holds another text

Every `raise IncompatibleStages(…)` of the modules below is in it: the words that a user reads, and
why, by the docstring of the function or module that raises.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'refusals.md'
BEGIN, END = '<!-- refusals -->', '<!-- end refusals -->'
PACKAGE = ROOT / 'fedjax_mem'

# Title -> modules, in the order in which a reader meets them.
GROUPS = {
  'Layers that make no round': ('core/layer', 'core/round', 'core/facts', 'core/shapes'),
  'What a side returns': ('engine/walk',),
  'Who is drawn': ('stages/select/_base', 'stages/select/contribution', 'config/privacy'),
  'Noise: its place, the weights, the draw': ('engine/checks/privacy', 'stages/privacy/_local'),
  'Noise: the bound on what one client changes': (
    'engine/checks/bounds',
    'stages/privacy/distributed',
  ),
  'Noise: nothing is released without it': ('engine/checks/released', 'engine/hiding'),
  'Noise: what no accountant states': ('account/events', 'account/together'),
  'Algorithms that send more than an update': ('stages/algorithm/_accumulates',),
  'Codecs': ('engine/checks/codecs', 'stages/compress/_base', 'stages/compress/downlink'),
  'Integers and masks': ('engine/checks/masks', 'stages/masks/integers', 'stages/masks/mask'),
  'Robust rules and attacks': (
    'engine/checks/byzantine',
    'stages/aggregate/_base',
    'stages/attack/_base',
  ),
  'Rounds in parts, and the compiled program': ('engine/split', 'engine/run'),
}
# Names in the source that say little to a reader.
SAID = {'x': 'other', 'twice': 'layer', 's': 'side', 'name': 'layer', 'sorted': 'extra'}
# Raised where there is no plan: by real machines, games of an audit, sweeps and objects.
ELSEWHERE = ('deploy/', 'studies/', 'federated/')


class Refusal(NamedTuple):
  """One refusal in the source.

  Attributes:
    words: what a user reads; what is known only then is in ‹ ›.
    why: what it is raised for, by the docstring of the function that raises; '' if it says none.
  """

  words: str
  why: str


def _hole(node: ast.expr) -> str:
  """Returns what stands for a value that only a plan knows."""
  if isinstance(node, ast.IfExp):
    texts = [_text(side) for side in (node.body, node.orelse)]
    return ' / '.join(text for text in texts if text)
  name = ast.unparse(node)
  if isinstance(node, ast.Call):
    name = ast.unparse(node.func)
  name = re.sub(r'\.name$|\[.*|__name__', '', name)
  name = re.sub(r'^type\(.*|^.*join$|^\(.*', 'what it is', name)
  name = ' '.join(re.sub(r'^(layers|self)\.', '', name).replace('_', ' ').replace('.', ' ').split())
  return f'‹{SAID.get(name, name)}›'


def _text(node: ast.expr) -> str:
  """Returns the text of a string, an f-string, or a sum of them."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return ''.join(_text(part) for part in node.values)
  if isinstance(node, ast.FormattedValue):
    return _hole(node.value)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _text(node.left) + _text(node.right)
  return _hole(node)


def _made(function: ast.FunctionDef) -> Iterator[ast.expr]:
  """Yields the messages that a function returns, for one that writes them."""
  for node in ast.walk(function):
    if isinstance(node, ast.Return) and node.value is not None:
      yield node.value


def _messages(tree: ast.Module, call: ast.Call) -> list[str]:
  """Returns the messages of a call, also where another function of the module writes them."""
  (said,) = call.args
  if isinstance(said, ast.Call) and isinstance(said.func, ast.Name):
    for node in tree.body:
      if isinstance(node, ast.FunctionDef) and node.name == said.func.id:
        return [_text(x) for x in _made(node)]
  return [_text(said)]


def refusals(module: str) -> list[Refusal]:
  """Returns the refusals in a module, in the order of its source."""
  source = (PACKAGE / f'{module}.py').read_text('utf-8')
  if 'IncompatibleStages(' not in source:
    return []
  tree = ast.parse(source)
  functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
  found = []
  for call in ast.walk(tree):
    if isinstance(call, ast.Call) and ast.unparse(call.func) == 'IncompatibleStages' and call.args:
      around = [x for x in functions if x.lineno <= call.lineno <= (x.end_lineno or 0)]
      told = [ast.get_docstring(x) or '' for x in sorted(around, key=lambda x: -x.lineno)]
      why = next((_why(x) for x in told if x), '')
      found += [(call.lineno, Refusal(text, why)) for text in _messages(tree, call)]
  return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _first(docstring: str) -> str:
  """Returns the paragraphs of a docstring before its sections."""
  return re.split(r'\n\s*(?:Args|Returns|Raises|Attributes):', docstring)[0].strip()


def text() -> str:
  """Returns the sections of the page, in Markdown."""
  lines: list[str] = []
  for title, modules in GROUPS.items():
    lines.append(f'## {title}\n')
    for module in modules:
      tree = ast.parse((PACKAGE / f'{module}.py').read_text('utf-8'))
      if module.startswith('engine/checks/'):
        lines.append(f'{_first(ast.get_docstring(tree) or "")}\n')
      why = None
      for one in refusals(module):
        if one.why != why:
          why = one.why
          lines.append(f'\n{why}\n' if why else '')
        lines.append(f'- {_escaped(one.words)}')
      lines.append('')
  return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip() + '\n'


def _why(docstring: str) -> str:
  """Returns what a function raises for, from its first sentence; '' if it does something else."""
  said = ' '.join(docstring.split('\n\n')[0].split())
  found = re.fullmatch(
    r'Raises(?: `IncompatibleStages`)?(?: errors?)? (for|where|if|unless) (.*)\.', said
  )
  return f'**{found[1].capitalize()} {found[2].replace("**", "^")}:**' if found else ''


def _escaped(words: str) -> str:
  """Returns words in which Markdown changes nothing."""
  return re.sub(r'([*_<>\[\]`])', r'\\\1', words)


def page(before: str) -> str:
  """Returns the page with the refusals between its markers.

  Raises:
    ValueError: the page has no markers.
  """
  place = re.compile(f'({BEGIN}\n).*?({END})', re.S)
  if not place.search(before):
    raise ValueError(f'the page must hold {BEGIN} and {END}, got none.')
  return place.sub(lambda found: f'{found[1]}\n{text()}\n{found[2]}', before)


def forgotten() -> list[str]:
  """Returns the modules with a refusal that are in no group."""
  listed = {module for modules in GROUPS.values() for module in modules}
  every = [x.relative_to(PACKAGE).with_suffix('').as_posix() for x in PACKAGE.rglob('*.py')]
  rest = [x for x in every if x not in listed and not x.startswith(ELSEWHERE)]
  return sorted(x for x in rest if refusals(x))


def main(words: list[str]) -> int:
  """Writes the page, or with --check says whether it is up to date; returns the exit code."""
  before = PAGE.read_text(encoding='utf-8')
  after = page(before)
  if words == ['--check']:
    print('up to date' if after == before else f'{PAGE.name} holds another text')
    return int(after != before)
  PAGE.write_text(after, encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
