"""Mutants are what they are said to be, and only a test that passes without one kills it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

# Last, since a module there has the name of a folder of tests.
sys.path.append(str(Path(__file__).parents[2] / 'scripts'))

import mutate
from mutation import contexts, drawing, runs, sites, table

pytestmark = pytest.mark.slow

UNTOUCHED = '''"""A docstring with 1 + 1."""
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  ONE = 1

__all__ = ['f'][0:]
Either = int | None


@cache(size=3)
class C:
  field: Literal[1, 2]


def f(x: Literal[3] = None) -> Literal[4]:
  """Not 1 < 2."""
  raise ValueError('a' + str(1), x < 2)
  return f'{x + 1} < {2}', 'text' + x, [x] + x, zip(x, strict=True)
'''
CHANGES = [
  ('x = a < b', 'comparison', {'x = a <= b'}),
  ('x = a == b != c', 'comparison', {'x = a != b != c', 'x = a == b == c'}),
  ('x = a is  not (b)', 'comparison', {'x = a is (b)'}),
  ('x = a not in b', 'comparison', {'x = a in b'}),
  ('x = (a) * (b)', 'arithmetic', {'x = (a) / (b)'}),
  ('x = a and b or c', 'and/or', {'x = a or b or c', 'x = a and b and c'}),
  ('x += y', 'arithmetic', {'x -= y'}),
  ('x += y', 'deleted', {'pass'}),
  ('f(\n  x\n)', 'deleted', {'pass'}),
  ('if f(x): y', 'negate', {'if not (f(x)): y'}),
  ('x = [y for y in z if y < 1]', 'negate', {'x = [y for y in z if not (y < 1)]'}),
  ('x = not (a or b)', 'not removed', {'x = (a or b)'}),
  ('x = 0.5', 'constant', {'x = 1.0'}),
  ('x = 0xFF', 'constant', {'x = 0x100'}),
  ('x = -1', 'constant', {'x = -2'}),
  ('x = y[2:, f(3)]', 'index', {'x = y[3:, f(3)]'}),
  ('x = f(on=True)', 'boolean', {'x = f(on=False)'}),
  ('x = f(a, b, *c)', 'arguments', {'x = f(b, a, *c)'}),
  ('x = a if b else lambda: c', 'branches', {'x = (lambda: c) if b else a'}),
  ('x = y.any()', 'any/all', {'x = y.all()'}),
  ('x = np.minimum(a, b)', 'min/max', {'x = np.maximum(a, b)'}),
]


def changed(source, kind):
  found = [s for s in sites.sites(source) if s.kind == kind]
  return {source[: s.start] + s.new + source[s.end :] for s in found}


def test_what_no_test_could_judge_is_left_alone():
  assert sites.sites(UNTOUCHED) == []


@pytest.mark.parametrize('source, kind, expected', CHANGES)
def test_kinds(source, kind, expected):
  assert changed(source, kind) == expected


PACKAGE = {
  'toy/__init__.py': '',
  'toy/one/__init__.py': '"""Sums."""\n',
  'toy/one/sums.py': (
    "START = 1\nNAME = 'ü'\n\n\ndef add(x, y):\n"
    "  é = 'ü'; z = x + y\n  return z\n\n\ndef least(x, y):\n  return min(x, y)\n"
  ),
  'toy/two/__init__.py': 'def far(x):\n  return x > 100\n',
  'tests/test_sums.py': (
    'from toy.one import sums\nfrom toy import two\n\n\n'
    'def test_add():\n  assert sums.add(2, 3) == 5\n\n\n'
    'def test_least():\n  assert sums.least(1, 2) == 1\n\n\n'
    'def test_far():\n  assert not two.far(1)\n\n\n'
    'def test_exactly():\n  assert not two.far(100)\n'
  ),
}
ROOMS = ['toy/one', 'toy/two']


@pytest.fixture
def tree(tmp_path):
  folder = tmp_path / 'tree'
  for name, text in PACKAGE.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, 'utf-8')
  return folder


def one(tree, file, old, new, kind):
  """Returns the mutant of one kind that puts `new` for `old`."""
  source = drawing.read(tree / file)
  found = [s for s in sites.sites(source) if s.kind == kind and s.new == new]
  (made,) = [m for s in found if (m := drawing._record('m1', file, source, s))['old'] == old]
  return made


def test_the_draw_depends_on_the_seed_only_and_covers_all_rooms(tree):
  drawn = drawing.draw(tree, ROOMS, 3, 1)
  assert drawn == drawing.draw(tree, ROOMS, 3, 1)
  assert {m['file'].split('/')[1] for m in drawn} == {'one', 'two'}
  assert [m['id'] for m in drawn] == ['m1', 'm2', 'm3']
  assert len({(m['file'], m['line']) for m in drawn}) == 3
  with pytest.raises(ValueError, match=r'^toy/one has room for 3 mutants, not for '):
    drawing.draw(tree, ROOMS, 20, 1)
  with pytest.raises(ValueError, match=r'^toy/three in .* holds no Python source'):
    drawing.draw(tree, ['toy/three'], 1, 1)


def test_a_mutant_replaces_characters_and_refuses_another_text(tree):
  source = drawing.read(tree / 'toy/one/sums.py')
  plus = one(tree, 'toy/one/sums.py', '+', '-', 'arithmetic')
  assert (plus['line'], plus['function'], plus['at_import']) == (6, 'add', False)
  least = one(tree, 'toy/one/sums.py', 'min', 'max', 'min/max')
  assert one(tree, 'toy/one/sums.py', '1', '2', 'constant')['at_import']
  expected = source.replace('x + y', 'x - y').replace('min(', 'max(')
  assert drawing.mutated(source, [plus, least]) == expected
  for other in (source.replace('z = x + y', 'z = y + x'), '\n' + source, ''):
    with pytest.raises(ValueError, match=r'^m1 does not fit: line 6 of toy/one/sums\.py must read'):
      drawing.mutated(other, [plus])
  with pytest.raises(ValueError, match='overlaps'):
    drawing.mutated(source, [plus, plus])


def made(tmp_path, tests, files, setups=None):
  """Returns contexts in which `files` has the names of the tests of each line."""
  names = list(tests)
  groups = []

  def index(some):
    return {
      file: {line: groups.append([names.index(t) for t in of]) or len(groups) - 1}
      for file, lines in some.items()
      for line, of in lines.items()
    }

  raw = {'files': index(files), 'setups': index(setups or {}), 'groups': groups}
  path = tmp_path / 'contexts.json'
  path.write_text(json.dumps(raw | {'tests': [[k, v] for k, v in tests.items()]}))
  return contexts.Contexts(path)


def mutant(line=6, at_import=False, **changes):
  made = {'id': 'm1', 'file': 'toy/a.py', 'line': line, 'end_line': line, 'column': 0, 'start': 0}
  made |= {'statement': [line - 1, line + 1], 'at_import': at_import, 'function': 'f', 'kind': 'x'}
  return made | {'end': 1, 'old': '1', 'new': '2', 'text': '1'} | changes


def test_coverage_and_junit_become_contexts(tree, tmp_path):
  import coverage

  data = coverage.CoverageData(basename=str(tmp_path / 'data'))
  sums = {'': [1, 5], 'tests/test_sums.py::test_add[a|b]|run': [6, 7]}
  sums |= {'tests/test_sums.py::test_least|setup': [6]}
  for context, lines in sums.items():
    data.set_context(context)
    data.add_lines({'toy/one/sums.py': lines, str(tree / 'toy/two/__init__.py'): lines[:1]})
  data.write()
  junit = tmp_path / 'junit.xml'
  junit.write_text(
    '<testsuites><testsuite>'
    '<testcase classname="tests.test_sums" name="test_add[a|b]" time="0.25"/>'
    '<testcase classname="tests.test_sums.TestY" name="test_z" time="1"/></testsuite></testsuites>'
  )
  out = tmp_path / 'contexts.json'
  command = ['contexts', '--tree', tree, '--out', out, '--from', tmp_path / 'data']
  mutate.main([*map(str, command), '--junit', str(junit), '--packages', *ROOMS])
  found = json.loads(out.read_text())
  assert found['tests'] == [
    ['tests/test_sums.py::test_add[a|b]', 0.25],
    ['tests/test_sums.py::TestY::test_z', 1.0],
    ['tests/test_sums.py::test_least', None],
  ]
  lines = {k: found['groups'][g] for k, g in found['files']['toy/one/sums.py'].items()}
  assert lines == {'1': [], '5': [], '6': [0, 2], '7': [0]}
  assert found['groups'][found['setups']['toy/one/sums.py']['6']] == [2]
  assert set(found['files']) == {'toy/one/sums.py', 'toy/two/__init__.py'}


def test_files_take_turns_with_more_and_more_tests():
  seconds = {'a::1': 1, 'a::2': 2, 'a::3': 3, 'a::4': 4, 'b::1': 0.5, 'b::2': 9}
  assert contexts.laps(seconds, seconds) == ['b::1', 'a::1', 'b::2', 'a::2', 'a::3', 'a::4']


def test_the_tests_of_a_mutant(tmp_path):
  tests = {'a.py::t[x-1-p]': 3, 'a.py::t[x-1]': 2, 'a.py::u[x-1-q]': 5, 'a.py::u[y]': 1}
  tests |= {'b.py::t': 1, 'b.py::u': 50, 'c.py::t': 1}
  select = made(tmp_path, tests, {'toy/a.py': {6: ['a.py::t[x-1-p]']}}).select
  # Those of the same case follow.
  same = ['a.py::t[x-1-p]', 'a.py::t[x-1]', 'a.py::u[x-1-q]']
  assert select(mutant(6), 60.0) == (same, 3)
  assert select(mutant(6), 6.0) == (same[:2], 3)
  assert select(mutant(6), 1.0) == (same[:1], 3)
  assert select(mutant(7), 60.0) == (same, 3)  # by the statement
  assert select(mutant(30), 60.0) == ([], 0)  # never executed
  assert select(mutant(30, at_import=True), 60.0) == (same, 3)
  # What a fixture executes may be shared by the whole file.
  line = {'toy/a.py': {6: ['b.py::t']}}
  assert made(tmp_path, tests, line).select(mutant(), 60.0).tests == ['b.py::t']
  shared = made(tmp_path, tests, line, line)
  assert shared.select(mutant(), 60.0).tests == ['b.py::t', 'b.py::u']
  (tmp_path / 'bad').write_text('[]')
  with pytest.raises(ValueError, match='no file of contexts'):
    contexts.Contexts(tmp_path / 'bad')


class Bench:
  """Ends as it is told: first with a mutant, then, if need be, without."""

  folder = Path('/copy')

  def __init__(self, *outcomes):
    self._outcomes = list(outcomes)
    self.calls = []
    self._on = False

  @contextlib.contextmanager
  def mutated(self, some):
    self._on = True
    yield
    self._on = False

  def pytest(self, targets, limit, *options):
    self.calls.append((self._on, list(targets)))
    return self._outcomes.pop(0)


def ended(code, *events, seconds=1.0, output=''):
  return runs.Outcome(code, seconds, [(*e.split(), 0.0) for e in events], output)


GOOD = ended(0, 'start a::1', 'finish a::1')
FAILED = ended(1, 'start a::1', 'failed a::1', 'finish a::1')
BROKEN = ended(4, 'collect a')
CONFTEST = ended(4, output='ImportError while loading conftest')
GONE = ended(4, output='ERROR: not found: /copy/a::1\n')
ALL_GONE = ended(4, output='ERROR: not found: /copy/a::1\nERROR: not found: /copy/b::1\n')
HANGING = ended(None, 'start a::1', seconds=99.0)
SLOW = ended(None, 'start a::1', seconds=3.0)
# Each with what the notes must say.
JUDGED = {
  'all pass': ([GOOD], 'survived', None, ''),
  'one fails': ([FAILED, GOOD], 'killed', 'a::1', ''),
  'it fails anyway': ([FAILED, FAILED, GOOD], 'survived', None, 'a::1 fails without the mutant'),
  'no import': ([BROKEN, GOOD], 'killed', 'import', ''),
  'no import of a conftest': ([CONFTEST, GOOD], 'killed', 'import', ''),
  'no import anyway': ([BROKEN, BROKEN, GOOD], 'survived', None, 'import fails without'),
  'usage': ([ended(4, output='usage: pytest')], 'error', None, 'pytest ended with 4: usage'),
  'inside pytest': ([ended(3)], 'error', None, 'pytest ended with 3'),
  'no pytest': ([ended(1, output='No module named pytest')], 'error', None, 'No module named'),
  'it crashes': ([ended(-11, 'start a::1'), GOOD], 'killed', 'a::1', 'the process crashed'),
  'it hangs': ([HANGING, GOOD], 'timeout', 'a::1', ''),
  'it is slow': ([SLOW, GOOD], 'survived', None, 'the time was up in a::1'),
  'one is gone': ([GONE, GOOD], 'survived', None, '1 tests not found'),
  'none is left': ([ALL_GONE], 'no-tests', None, '2 tests not found'),
  'deselected': ([ended(5)], 'no-tests', None, '2 tests deselected'),
}


@pytest.mark.parametrize('name', JUDGED)
def test_verdicts(name):
  outcomes, verdict, killer, note = JUDGED[name]
  bench = Bench(*outcomes)
  said = runs.Judge(100.0).verdict(bench, mutant(), ['a::1', 'b::1'])
  assert (said['verdict'], said['killer']) == (verdict, killer)
  assert note in said['note'] and bool(note) == bool(said['note'])
  assert bench._outcomes == []
  assert bench.calls[0] == (True, ['a::1', 'b::1'])
  assert [on for on, _ in bench.calls[1:2]] in ([], [name == 'one is gone'])
  if 'anyway' in name or 'is gone' in name:
    assert bench.calls[-1] == (True, ['b::1'])


def test_a_killer_is_tried_once_without_mutants():
  judge = runs.Judge(100.0)
  assert judge.verdict(Bench(FAILED, GOOD), mutant(), ['a::1'])['verdict'] == 'killed'
  assert judge.verdict(Bench(FAILED), mutant(), ['a::1'])['verdict'] == 'killed'
  assert judge.verdict(Bench(), mutant(), [])['verdict'] == 'no-tests'


def test_a_run_ends_with_a_table(tree, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('PYTEST_DISABLE_PLUGIN_AUTOLOAD', '1')
  monkeypatch.chdir(tmp_path)
  subprocess.run(['git', 'init', '-q', str(tree)], check=True)
  drawn = [
    one(tree, 'toy/one/sums.py', '+', '-', 'arithmetic') | {'id': 'm1'},
    one(tree, 'toy/one/sums.py', 'min', 'max', 'min/max') | {'id': 'm2'},
    one(tree, 'toy/two/__init__.py', '>', '>=', 'comparison') | {'id': 'm3'},
  ]
  Path('mutants.json').write_text(json.dumps(drawn))
  test = 'tests/test_sums.py::test_'
  tests = {f'{test}{name}': 0.1 for name in ('add', 'least', 'far', 'exactly')}
  made(
    tmp_path,
    tests,
    {
      'toy/one/sums.py': {6: [f'{test}add']},
      'toy/two/__init__.py': {2: [f'{test}far']},
    },
  )
  known = {'id': 'm2', 'mutant': runs.fingerprint(drawn[1]), 'verdict': 'killed'}
  known |= {'killer': f'{test}least', 'seconds': 1, 'tests': 1, 'ran': 1, 'note': ''}
  Path('new.jsonl').write_text(json.dumps(known) + '\n{"id": "m1", "mut')  # torn
  command = ['--tree', str(tree), '--mutants', 'mutants.json', '--out']
  mutate.main(['run', *command, 'new.jsonl', '--contexts', 'contexts.json'])
  verdicts = mutate.read_verdicts([Path('new.jsonl')], drawn)
  assert {k: (v['verdict'], v['killer']) for k, v in verdicts.items()} == {
    'm1': ('killed', f'{test}add'),
    'm2': ('killed', f'{test}least'),
    'm3': ('survived', None),
  }
  assert sorted(x.split(' in ')[0] for x in capsys.readouterr().out.splitlines()) == [
    f'm1 killed by {test}add',
    'm3 survived',
  ]
  whole = ['everything', *command, 'all.jsonl', '--verdicts', 'new.jsonl', '--']
  mutate.main([*whole, sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'])
  after = ['--after', 'new.jsonl', 'all.jsonl', '--out', 'table.md']
  mutate.main(['table', '--mutants', 'mutants.json', '--before', 'new.jsonl', *after])
  last = Path('table.md').read_text().splitlines()[-1]
  assert last.endswith(f'| **survived** | `{test}exactly` |')
  for file, text in PACKAGE.items():
    assert (tree / file).read_text('utf-8') == text


def test_the_table_is_loud_about_what_got_weaker():
  some = [mutant(id='m1', text='x = 1 | y', column=4), mutant(id='m2'), mutant(id='m3')]
  dead, alive = {'verdict': 'killed', 'killer': 'a::1'}, {'verdict': 'survived', 'killer': None}
  before = {'m1': dead, 'm2': alive, 'm3': alive}
  text, wrong = table.page(some, before, {'m2': alive, 'm3': alive}, {'m2': 'a | b'})
  assert wrong == [
    'm1 (toy/a.py:6) died before and does not die after.',
    'm3 (toy/a.py:6) is alive and has no argument.',
  ]
  assert '## DIED BEFORE AND NOT AFTER\n\n- **m1** toy/a.py:6: ' in text
  assert r'| `x = 1 \| y` → `x = 2 \| y` | `a::1` | **not run** |' in text
  assert r'| **survived** | **survived**; equivalent: a \| b |' in text
  assert table.page(some[:1], before, before, {})[1] == []


def test_what_cannot_be_is_refused(tree, tmp_path):
  out = ['--out', str(tmp_path / 'out')]
  with pytest.raises(SystemExit, match='together'):
    mutate.main(['contexts', *out, '--from', 'data'])
  with pytest.raises(SystemExit, match='nothing may follow'):
    mutate.main(['draw', *out, '--', 'x'])
  with pytest.raises(SystemExit, match='2'):
    mutate.main(['draw', *out, '--count', '0'])
  other = {'id': 'm1', 'mutant': 'of another file', 'verdict': 'survived'}
  (tmp_path / 'old').write_text(json.dumps(other))
  with pytest.raises(ValueError, match='another mutant than m1'):
    mutate.read_verdicts([tmp_path / 'old'], [mutant()])
  with pytest.raises(ValueError, match='must be a git checkout'):
    runs.Bench(tree, 'toy', sys.executable)
