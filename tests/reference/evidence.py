"""What the programs of `tests/oracle/privacy/` share: a table of figures, printed and kept.

Each of these modules is a test with a small grid, and a program with the whole one:

  python -m tests.oracle.privacy.test_epsilon --full

prints the table, and writes it between the module's markers in docs/privacy-evidence.md.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:  # as in tests/conftest.py, for a program
  sys.path.insert(0, str(TESTS))
PAGE = TESTS.parent / 'docs' / 'privacy-evidence.md'
Row = dict[str, object]


def table(rows: Sequence[Row]) -> str:
  """Returns rows of the same columns as a table in Markdown."""
  shown = lambda x: f'{x:.4g}' if isinstance(x, float) else str(x)
  lines = [list(rows[0]), ['---'] * len(rows[0]), *([shown(x) for x in r.values()] for r in rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def placed(page: str, name: str, text: str) -> str:
  """Returns the page with the text between the markers `name`, which it must have."""
  place = re.compile(rf'(<!-- {name} -->\n).*?(<!-- end {name} -->)', re.S)
  if not place.search(page):
    raise ValueError(f'the page must have the markers of {name!r}.')
  return place.sub(lambda m: f'{m[1]}\n{text}\n\n{m[2]}', page)


def main(name: str, make: Callable[[bool], Sequence[Row]]) -> None:
  """Runs a module as a program: the small grid, or with --full the whole one, which is written."""
  parser = argparse.ArgumentParser(prog=f'python -m tests.oracle.privacy.test_{name}')
  parser.add_argument('--full', action='store_true', help='the whole grid; writes its table')
  full = parser.parse_args().full
  began = time.perf_counter()
  text = table(make(full))
  print(text)
  print(f'{time.perf_counter() - began:.0f} s')
  if full:
    PAGE.write_text(placed(PAGE.read_text(encoding='utf-8'), name, text), encoding='utf-8')
