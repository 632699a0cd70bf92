"""The pages of the documentation: their code runs, their configurations plan, links lead somewhere.

`scripts/pages/blocks.py` says how a comment before a block changes what is done with it. Of the
Python of a page each block sees the names of those before it. A line `print(…)  # words` must print
these words, in which … stands for anything.
"""

import contextlib
import fnmatch
import io
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import tomli_w

import fedjax_mem as fm
from fedjax_mem.cli import main as cli
from fedjax_mem.runner.prepare import get_ready

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts' / 'pages'))

import blocks  # noqa: E402
import check  # noqa: E402
import refusals  # noqa: E402

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore:FigureCanvasAgg is non-interactive'),
]

# Run by tests that look at more of what they give: test_examples.py and test_sweeps.py.
RUN_ELSEWHERE = ('docs/methods.md', 'docs/sweeps.md')
SAID = re.compile(r'^ *print\(.*\)  # (.*)$', re.M)
BASE = """
version = 1
name = 'page'
rounds = 2
data = {name = 'digits', num_clients = 20}
model = {name = 'logistic'}
selection = {cohort_size = 4}
"""


def pages(language):
  """Returns pytest's parameters: the pages with a block of a language, and these blocks."""
  for path in [*blocks.sources(), ROOT / 'README.md']:
    name = path.relative_to(ROOT).as_posix()
    found = [x for x in blocks.of(path.read_text('utf-8')) if x.language == language]
    run = [x for x in found if not x.reason]
    if run and not (language == 'python' and name in RUN_ELSEWHERE):
      yield pytest.param(name, run, id=name)


@pytest.fixture
def place(tmp_path, monkeypatch, undrawn):
  """A folder to run in, with the configurations of the repository."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  return tmp_path


@pytest.mark.parametrize(('name', 'run'), list(pages('python')))
def test_python_runs(name, run, place):
  names = {'__name__': 'page'}
  for number, block in enumerate(run):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      exec(compile(block.code, f'{name}, block {number}', 'exec'), names)
    lines = iter([x.strip() for x in said.getvalue().splitlines()])
    for want in SAID.findall(block.code):
      pattern = re.sub(r'([\[\]])', r'[\1]', want).replace('…', '*')
      there = any(fnmatch.fnmatchcase(line, pattern) for line in lines)  # in this order
      assert there, f'{name}: {want!r} is not in {said.getvalue()!r}'


@pytest.mark.parametrize(('name', 'run'), list(pages('bash')))
def test_commands_run(name, run, place):
  for block in run:
    for line in block.code.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      if not words:
        continue
      assert Path(words[0]).name == 'fedjax-mem', f'{name}: {line!r}: only this command is run'
      more = shlex.split(block.said) if block.word == 'run with' else []
      # A folder of a run is named after its configuration: * stands for the rest of its name.
      given = [str(next(place.glob(x)).relative_to(place)) if '*' in x else x for x in words[1:]]
      with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main([*given, *more])
      assert code == 0, f'{name}: {line!r}'


@pytest.mark.parametrize(('name', 'run'), list(pages('toml')))
def test_configurations_plan(name, run, place):
  for block in run:
    given = tomllib.loads(block.code)
    if block.word != 'alone':
      under = (ROOT / block.said).read_text() if block.word == 'over' else BASE
      given = laid_over(tomllib.loads(under), given)
    path = place / 'page.toml'
    path.write_text(tomli_w.dumps(given))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      get_ready(fm.load_config(path), None, {})


def laid_over(under, given):
  """Returns a configuration with the tables of another laid over its own."""
  both = dict(under)
  for key, value in given.items():
    mix = isinstance(value, dict) and isinstance(under.get(key), dict)
    both[key] = laid_over(under[key], value) if mix else value
  return both


@pytest.mark.parametrize('name', ['coming_from/ours', 'by_hand'])
def test_the_experiments_that_pages_show_run(name, capsys):
  runpy.run_path(str(ROOT / 'scripts' / 'examples' / f'{name}.py'))
  (accuracy,) = re.findall(r'accuracy (\S+)', capsys.readouterr().out)
  assert float(accuracy) > 0.85  # seen: 0.896 and 0.958


def test_what_a_plan_refuses_is_up_to_date():
  page = refusals.PAGE.read_text('utf-8')
  assert refusals.page(page) == page
  assert refusals.forgotten() == []


def test_what_a_site_loads_from_elsewhere_is_found(tmp_path):
  (tmp_path / 'index.html').write_text(
    '<a href="https://example.org">a link is not loaded</a><img src="assets/a.png">'
    '<script src="//example.org/a.js"></script><link rel="stylesheet" href="HTTPS://b.org/c.css">'
  )
  (tmp_path / 'site.css').write_text('a { b: url(data:x); c: url("https://c.org/d.woff2") }')
  assert check.static(tmp_path) == [
    'index.html loads //example.org/a.js',
    'index.html loads HTTPS://b.org/c.css',
    'site.css loads https://c.org/d.woff2',
  ]
  with pytest.raises(ValueError, match='site must be a folder with'):
    check.static(tmp_path / 'nothing')


def test_a_block_that_is_not_run_says_why():
  with pytest.raises(ValueError, match='must state its reason'):
    blocks.of('<!-- not run:  -->\n```python\n1\n```\n')
  (one,) = blocks.of('<!-- not run: too long -->\n\n```bash\nls\n```\n')
  assert one.reason == 'too long'
