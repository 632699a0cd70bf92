"""The bar in a notebook: one output, replaced in place; outside of a kernel there is none."""

import sys
import threading
import types

import pytest

from fedjax_mem.runner import notebook
from fedjax_mem.runner.progress import Progress


class Kernel:
  """IPython as a kernel has it: keeps each output, and what it was replaced by."""

  def __init__(self):
    self.outputs, self.later = [], threading.Event()

  def display(self, bundle, raw, display_id):
    assert raw and display_id
    shown = [bundle]
    self.outputs.append(shown)

    def update(bundle, raw):
      assert raw
      shown.append(bundle)
      self.later.set()

    return types.SimpleNamespace(update=update)


@pytest.fixture
def ipython(monkeypatch):
  """Returns a function that puts IPython there, with a kernel or, on a terminal, without."""

  def put(kernel):
    shell = types.SimpleNamespace(**({'kernel': kernel} if kernel else {}))
    root = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, 'IPython', root)
    found = types.SimpleNamespace(display=kernel.display if kernel else None)
    monkeypatch.setitem(sys.modules, 'IPython.display', found)
    return kernel

  return put


def test_a_run_is_one_output_and_its_notes_are_text(ipython, capsys):
  kernel = ipython(Kernel())
  with Progress(300) as bar:
    bar.note('ε <b>')
    for r in range(1, 201):
      bar.update({'round': r, 'train_loss': 0.5, 'test_accuracy': 0.75, 'seconds': 0.1})
    assert kernel.later.wait(5)  # it moves while the run goes on
    bar.update({'round': 201})
  (shown,) = kernel.outputs
  assert shown[0]['text/plain'].startswith('round 0/300 · 0:00')
  assert 'value="200" max="300"' in shown[1]['text/html']
  assert 'value="201" max="300"' in shown[-1]['text/html'] and len(shown) < 10
  assert shown[-1]['text/plain'].startswith('round 201/300 · loss 0.5000 · accuracy 75.00% · 0:')
  assert capsys.readouterr().out == 'ε <b>\n'


def test_what_it_says_is_no_markup():
  kernel = Kernel()
  bar = notebook.Bar(kernel.display, lambda: notebook.Shown(1, 2, '<i>', 'a & b'))
  bar.start()
  bar.stop()
  assert '&lt;i&gt;<br>a &amp; b' in kernel.outputs[0][-1]['text/html']
  assert kernel.outputs[0][-1]['text/plain'] == 'round 1/2 · a & b · <i>'


def test_a_run_that_fails_leaves_its_last_state_and_no_thread(ipython):
  kernel, before = ipython(Kernel()), threading.active_count()
  with pytest.raises(KeyError), Progress(9) as bar:
    bar.update({'round': 4})
    raise KeyError
  assert 'round 4/9' in kernel.outputs[0][-1]['text/plain']
  assert threading.active_count() == before


@pytest.mark.parametrize('kernel', [None, Kernel()])
def test_on_a_terminal_and_if_quiet_there_is_no_output(ipython, kernel, capsys):
  ipython(kernel)
  with Progress(9, quiet=bool(kernel)) as bar:
    bar.update({'round': 4})
  assert 'round 4/9' in capsys.readouterr().out
  assert not kernel or kernel.outputs == []


def test_without_ipython_nothing_is_imported(monkeypatch):
  monkeypatch.delitem(sys.modules, 'IPython', raising=False)
  assert notebook.display() is None and 'IPython' not in sys.modules
