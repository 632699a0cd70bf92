"""Which stages go with which algorithm, and why not: planned on shapes, and kept in the docs.

  python -m tests.contract.test_algorithm_table

writes the table between its markers in docs/algorithms.md. No test runs these pairs: every plan is
checked with the same functions before a run, and the methods themselves are under contract.
"""

import re
import sys
from pathlib import Path
from unittest import mock

import pytest

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:  # as in tests/conftest.py, for a program
  sys.path.insert(0, str(TESTS))

from contract import suite  # noqa: E402
from reference import tiny  # noqa: E402
from reference.evidence import placed  # noqa: E402

from fedjax_mem.core import IncompatibleStages  # noqa: E402
from fedjax_mem.engine import plan  # noqa: E402

PAGE = TESTS.parent / 'docs' / 'algorithms.md'
KINDS = {
  'PRIVACY': 'privacy',
  'COMPRESSION': 'codec',
  'SECURE': 'mask',
  'AGGREGATION': 'rule',
  'ATTACKS': 'attack',
}
ALGORITHMS = tuple(suite.IN_TREE['ALGORITHMS'])


def verdict(algorithm: str, registry: str, name: str) -> str:
  """Returns why a stage is refused beside an algorithm, in general words; empty: it runs."""
  layers = suite.dress(
    suite.tree_case(registry, name).make(), suite.tree_case('ALGORITHMS', algorithm).make()
  )
  try:
    # What a plan refuses does not need the trace of a whole round, which takes most of its time.
    with mock.patch.object(plan, '_check_fixed_point', lambda *args: {}):
      tiny.build(layers, tiny.MODES['loop'])
  except IncompatibleStages as error:
    others = [x.name for x in layers if x.name not in ('select', 'weigh', 'algorithm')]
    named = re.sub(f"'({'|'.join(['algorithm', *others])})'", _word, str(error))
    return re.sub(r'\[.*?\]', '`aux`', named)
  return ''


def _word(found: re.Match) -> str:
  return 'the algorithm' if found[1] == 'algorithm' else 'the stage'


def table() -> str:
  """Returns the table in Markdown, and below it the reasons."""
  reasons: list[str] = []

  def cell(why: str) -> str:
    if why and why not in reasons:
      reasons.append(why)
    return f'no ({"abcdefgh"[reasons.index(why)]})' if why else 'yes'

  lines = [['stage', *(f'`{a}`' for a in ALGORITHMS)], ['---'] * (len(ALGORITHMS) + 1)]
  for registry, kind in KINDS.items():
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in suite.IN_TREE[registry]:
      cells = tuple(cell(verdict(a, registry, name)) for a in ALGORITHMS)
      alike.setdefault(cells, []).append(f'`{name}`')
    lines += [[f'{kind}: {" ".join(names)}', *cells] for cells, names in alike.items()]
  rows = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
  notes = '\n'.join(f'- ({"abcdefgh"[i]}) {why}' for i, why in enumerate(reasons))
  return f'{rows}\n\n{notes}'


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_plans_say():
  page = PAGE.read_text(encoding='utf-8')
  fresh = placed(page, 'stages', table())
  assert page == fresh, 'stale: python -m tests.contract.test_algorithm_table writes it anew'


def test_the_page_names_every_algorithm_and_every_stage():
  page = PAGE.read_text(encoding='utf-8')
  head, rows = page.partition('<!-- stages -->')[::2]
  assert [a for a in ALGORITHMS if f'| `{a}` |' not in head or f'| `{a}` ' not in rows] == []
  names = [name for registry in KINDS for name in suite.IN_TREE[registry]]
  assert [name for name in names if f'`{name}`' not in rows] == []


@pytest.mark.parametrize(
  ('registry', 'name', 'words'),
  [
    ('PRIVACY', 'central', 'sums `aux` beside it without noise'),
    ('AGGREGATION', 'median', 'protects the update only'),
    ('ATTACKS', 'sign_flip', 'as an honest client sends it'),
    ('COMPRESSION', 'top_k', ''),
  ],
)
def test_what_is_sent_beside_the_update_is_refused_where_nothing_covers_it(registry, name, words):
  assert words in verdict('scaffold', registry, name)
  assert bool(verdict('scaffold', registry, name)) == bool(words)


if __name__ == '__main__':
  PAGE.write_text(placed(PAGE.read_text(encoding='utf-8'), 'stages', table()), encoding='utf-8')
