"""The notebooks as they are committed: without outputs, named by a page, and their checks can fail.

`scripts/notebooks.py` executes them, which `.ci/run` does.
"""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))

import notebooks  # noqa: E402

PATHS = sorted(notebooks.FOLDER.glob('*.ipynb'))
PAGE = ROOT / 'docs' / 'guide' / 'notebooks.md'


@pytest.mark.parametrize('path', PATHS, ids=lambda x: x.stem)
def test_no_outputs_are_committed(path):
  book = json.loads(path.read_text('utf-8'))
  assert notebooks.text(notebooks.stripped(book)) == path.read_text('utf-8')
  ids = [cell['id'] for cell in book['cells']]
  assert len(ids) == len(set(ids)) and book['nbformat'] == 4


def test_outputs_are_taken_away():
  cell = {'cell_type': 'code', 'id': 'a', 'source': ['1'], 'metadata': {'collapsed': True}}
  book = {'cells': [cell | {'execution_count': 3, 'outputs': [{}]}], 'nbformat': 4}
  book['metadata'] = {'kernelspec': {'name': 'python3'}, 'widgets': {}}
  (only,) = notebooks.stripped(book)['cells']
  assert only == cell | {'metadata': {}, 'execution_count': None, 'outputs': []}


def test_the_page_has_them_all_and_their_links_lead_somewhere():
  linked = re.findall(r'\]\(\.\./notebooks/([^)]+)\)', PAGE.read_text('utf-8'))
  assert linked == [x.name for x in PATHS] and len(PATHS) == 6
  for path in PATHS:
    cells = [x for x in json.loads(path.read_text('utf-8'))['cells'] if x['cell_type'] != 'code']
    for link in re.findall(r'\]\(([^)#]+)', ''.join(line for x in cells for line in x['source'])):
      assert (path.parent / link).exists(), f'{path.name}: {link}'


def run(done='2/2', **more):
  html, line = {'text/html': '<progress>'}, {'text/plain': f'round {done} · 0:01'}
  bar = {'output_type': 'display_data', 'data': html | line}
  said = {'output_type': 'stream', 'text': 'compiling a round of x\n', **more}
  return [bar, said]


@pytest.mark.parametrize(
  ('outputs', 'wrong'),
  [
    (run(), None),
    (run() + run(), None),
    (run('1/2'), "1 runs and these bars: [['1', '2']]"),
    (run() + run()[:1], '1 runs and these bars'),
    (run()[1:], '1 runs and these bars: []'),
    (run(text='compiling a round of x\n' + 'round 1\n' * 50), 'writes 51 lines'),
    (run(text='compiling a round of x\rround 1'), 'writes 0 lines'),
    ([{'output_type': 'execute_result', 'data': {'text/plain': '<Figure size>'}}], 'no picture'),
  ],
)
def test_what_is_wrong_with_outputs_is_found(outputs, wrong):
  found = notebooks.untidy({'cells': [{'outputs': outputs}]})
  assert [wrong in x for x in found] == [True] if wrong else found == []
