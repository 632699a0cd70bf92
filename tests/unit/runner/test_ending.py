"""What the caller of a run gets: records as a frame, and a table in a notebook."""

import json
import pathlib
import sys

import numpy as np
import pytest

from fedjax_mem.models import saved
from fedjax_mem.runner.ending import Result, write_params

METRICS = [{'round': 1, 'loss': 0.5}, {'round': 2, 'loss': 0.25, '<b>': 1, 'covered': ['loss']}]


def test_records_as_a_frame(monkeypatch):
  frame = Result({}, METRICS, pathlib.Path('x')).to_pandas()
  assert frame.index.tolist() == [1, 2] and frame['loss'].tolist() == [0.5, 0.25]
  assert np.isnan(frame.loc[1, '<b>']) and frame.loc[2, '<b>'] == 1
  monkeypatch.setitem(sys.modules, 'pandas', None)
  with pytest.raises(ValueError, match=r"pip install 'fedjax_mem\[tables\]'"):
    Result({}, METRICS, pathlib.Path('x')).to_pandas()


def test_a_notebook_shows_the_last_record_however_many_there_are():
  shown = Result({}, METRICS, pathlib.Path('runs/<i>'))._repr_html_()
  assert '<th>loss</th><td>0.25</td>' in shown and '&lt;b&gt;' in shown and 'covered' not in shown
  assert 'runs/&lt;i&gt;' in shown and '<b>' not in shown
  many = Result({'w': np.ones(10**5)}, METRICS * 50_000, pathlib.Path('x'))
  assert many._repr_html_().count('<tr>') == 3
  assert repr(many) == "Result(100000 rounds, in 'x')"  # a notebook asks for it as well
  assert '<table></table>' in Result({}, [], pathlib.Path('x'))._repr_html_()


def test_curves_of_several_runs_are_one_figure_that_a_notebook_shows(tmp_path):
  runs = []
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    lines = [{'round': r, 'test_accuracy': r / 4} for r in (1, 2)]
    (tmp_path / name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    runs.append(Result({}, lines, tmp_path / name))
  figure = runs[0].plot(runs[1])
  (legend,) = figure.legends
  assert [x.get_text() for x in legend.get_texts()] == ['one', 'two']
  assert figure._repr_png_().startswith(b'\x89PNG')
  with pytest.raises(ValueError, match='a run must be a folder'):
    Result({}, [], tmp_path / 'gone').plot()


def test_parameters_that_no_file_can_hold_end_no_run(tmp_path):
  class Folder:
    path, manifest = tmp_path, {'warnings': ['a']}

    def note(self, **facts):
      self.manifest |= facts

  folder = Folder()
  write_params(folder, {'a/b': np.ones(1), 'a': {'b': np.ones(1)}})
  first, said = folder.manifest['warnings']
  assert first == 'a' and said.startswith('params.safetensors could not be written: params must')
  assert list(tmp_path.iterdir()) == []
  write_params(folder, {'a': np.ones(1)})
  assert saved.read(tmp_path / saved.FINAL)['a'].tolist() == [1]
