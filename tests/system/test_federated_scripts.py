"""The reference page is what its script writes; the example script and the notebook run."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_reference_page_is_up_to_date():
  page = load(ROOT / 'scripts/reference.py').page()
  assert (ROOT / 'docs/reference/federated.md').read_text(encoding='utf-8') == page


def test_the_example_script_runs(capsys):
  load(ROOT / 'scripts/examples/complete_example.py').main()
  said = capsys.readouterr().out.splitlines()
  assert said[0].endswith('ε=2.00 for each device')
  assert float(said[1].rsplit(' ', 1)[1]) >= 0.9


@pytest.mark.filterwarnings('ignore:FigureCanvasAgg is non-interactive')
def test_the_notebook_runs(monkeypatch):
  monkeypatch.chdir(ROOT)
  book = json.loads((ROOT / 'scripts/examples/complete_example.ipynb').read_text('utf-8'))
  cells = [''.join(x['source']) for x in book['cells'] if x['cell_type'] == 'code']
  names = {'__name__': 'notebook'}
  for source in cells:
    exec(source, names)
  assert names['accuracies'][-1] >= 0.9
  assert any('image/png' in o.get('data', {}) for x in book['cells'] for o in x.get('outputs', []))
