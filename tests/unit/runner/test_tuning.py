"""Execution 'auto': asked, from the table, from the cache or measured; only speed changes."""

import json

import jax
import numpy as np
import pytest

from fedjax_mem.config.parts import Parts, known
from fedjax_mem.engine import Execution
from fedjax_mem.runner import prepare as ready
from fedjax_mem.runner import tuning
from fedjax_mem.runner.loop import resume, run

pytestmark = pytest.mark.usefixtures('undrawn')

VALUES = {'w': np.zeros(3)}
PARTS = Parts(None, None, None, VALUES, known(VALUES))
AUTO = Execution()
VMAP, CHUNK32, CHUNK8, LOOP = (Execution(**x) for x in tuning.CANDIDATES)


class Clock:
  """Seconds that pass only where something is said to take them."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Sim:
  """A simulation whose compilation and rounds take the given seconds on a clock."""

  def __init__(self, clock, compile_seconds, seconds):
    self.clock, self.compile_seconds, self.seconds = clock, compile_seconds, seconds

  def init(self, params):
    return params

  def run(self, state, rounds):
    assert rounds == 1
    if self.seconds is None:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    self.clock.now += self.compile_seconds + self.seconds
    self.compile_seconds = 0
    return state, {}


def name(execution):
  return execution.mode if execution.chunk is None else f'{execution.mode} {execution.chunk}'


@pytest.fixture
def unknown(monkeypatch, tmp_path):
  """The folder of an empty cache; the table knows nothing here."""
  monkeypatch.setattr(tuning, 'in_table', lambda platform, params: False)
  monkeypatch.setenv('FEDJAX_MEM_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def measure(seconds, compile_seconds=0.1, execution=AUTO, key='work'):
  """Returns ((pick, how), what was tried) where candidates take the seconds by name."""
  clock, tried = Clock(), []

  def make(wanted):
    tried.append(name(wanted))
    compiling = compile_seconds
    if isinstance(compiling, dict):
      compiling = compiling[name(wanted)]
    return Sim(clock, compiling, seconds[name(wanted)])

  return tuning.choose(execution, make, PARTS, key, clock=clock), tried


FAST_CHUNK = {'vmap': 0.3, 'chunk 32': 0.2, 'chunk 8': 0.1, 'loop': 0.4}


@pytest.mark.parametrize('asked', [VMAP, CHUNK8, LOOP])
def test_what_is_asked_for_is_not_questioned(unknown, asked):
  (got, how), tried = measure(FAST_CHUNK, execution=asked)
  assert (got, how, tried) == (asked, 'asked', [])
  assert not unknown.exists()


def test_what_the_table_knows_is_not_measured(unknown, monkeypatch):
  seen = []
  monkeypatch.setattr(tuning, 'in_table', lambda *given: seen.append(given) or True)
  (got, how), tried = measure(FAST_CHUNK)
  assert (got, how, tried) == (AUTO, 'table', [])
  assert seen[0][0] == jax.default_backend()
  assert not unknown.exists()


def test_the_table_knows_every_model_on_a_cpu():
  got, how = tuning.choose(AUTO, None, PARTS, 'work')
  assert (got, how) == (AUTO, 'table')


def test_a_miss_measures_the_second_round_and_keeps_the_pick(unknown):
  (got, how), tried = measure(FAST_CHUNK)
  assert (name(got), how) == ('chunk 8', 'measured')
  assert tried == ['vmap', 'chunk 32', 'chunk 8', 'loop']
  (again, how), tried = measure(FAST_CHUNK)
  assert (again, how, tried) == (got, 'cache', [])


def test_compiling_does_not_count_but_uses_the_budget(unknown):
  compiling = {'vmap': 2.2, 'chunk 32': 0.3, 'chunk 8': 0.6, 'loop': 0.1}
  (got, _), tried = measure({**FAST_CHUNK, 'vmap': 0.05}, compiling)
  assert name(got) == 'vmap'  # the slowest to compile
  assert tried == ['vmap', 'chunk 32', 'chunk 8']  # the fourth would begin after 3 s


def test_a_candidate_that_takes_the_budget_is_finished_and_no_other_begun(unknown):
  (got, how), tried = measure(FAST_CHUNK, compile_seconds=100)
  assert (name(got), how, tried) == ('vmap', 'measured', ['vmap'])


def test_a_candidate_that_does_not_fit_the_memory_is_passed_over(unknown):
  (got, how), _ = measure({**FAST_CHUNK, 'vmap': None, 'chunk 32': None})
  assert (name(got), how) == ('chunk 8', 'measured')
  with pytest.raises(jax.errors.JaxRuntimeError, match='out of memory'):
    measure(dict.fromkeys(FAST_CHUNK), key='larger')


@pytest.mark.parametrize(
  ('key', 'execution'), [('other work', AUTO), ('work', Execution(devices=1))]
)
def test_other_work_and_other_devices_are_measured_anew(unknown, key, execution):
  measure(FAST_CHUNK)
  (got, how), _ = measure({**FAST_CHUNK, 'loop': 0.01}, key=key, execution=execution)
  assert (got.mode, got.devices, how) == ('loop', execution.devices, 'measured')
  (got, how), _ = measure(FAST_CHUNK)  # and what was kept before is kept still
  assert (name(got), how) == ('chunk 8', 'cache')


@pytest.mark.parametrize(
  'text',
  [
    '', '{', 'null', '[]', '3', '{"x": 3}', '\x00', '{"x": {"mode": "warp"}}',
    '{"x": {"mode": "chunk", "chunk": -1}}', '{"x": ["vmap"]}',
  ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_counts_as_nothing(unknown, text):
  unknown.mkdir()
  (unknown / 'execution.json').write_text(text)
  (got, how), _ = measure(FAST_CHUNK)
  assert (name(got), how) == ('chunk 8', 'measured')
  assert measure(FAST_CHUNK)[0] == (got, 'cache')


def test_bytes_that_are_no_text_count_as_nothing(unknown):
  unknown.mkdir()
  (unknown / 'execution.json').write_bytes(b'\xff\xfe{')
  assert measure(FAST_CHUNK)[0][1] == 'measured'


def test_a_pick_that_was_tampered_with_is_measured_anew(unknown):
  measure(FAST_CHUNK)
  file = unknown / 'execution.json'
  file.write_text(file.read_text().replace('8', '7'))
  assert measure(FAST_CHUNK)[0][1] == 'measured'


def test_a_cache_that_cannot_be_kept_costs_nothing_else(unknown):
  unknown.write_text('a file where the folder should be')
  assert [measure(FAST_CHUNK)[0][1] for _ in range(2)] == ['measured', 'measured']


# In a run.

WORK = ('rounds=3', 'client.batch_size=60', 'evaluation.every=3')


def picked(folder):
  return json.loads((folder / 'manifest.json').read_text())['execution']


def bits(params):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


@pytest.mark.slow
def test_a_run_says_how_its_execution_was_picked_and_equals_one_that_asks(
  make, tmp_path, unknown, monkeypatch
):
  measured = run(make(*WORK), tmp_path / 'measured', quiet=True)
  said = picked(measured.folder)
  assert said['picked'] == 'measured'
  (kept,) = json.loads((unknown / 'execution.json').read_text()).values()
  asked = run(
    make(*WORK, *(f'execution.{k}={v}' for k, v in kept.items())), tmp_path / 'asked', quiet=True
  )
  assert {**picked(asked.folder), 'picked': 'measured'} == said
  assert picked(asked.folder)['picked'] == 'asked'
  assert bits(measured.params) == bits(asked.params)
  strip = lambda records: [{k: v for k, v in r.items() if k != 'seconds'} for r in records]
  assert strip(measured.metrics) == strip(asked.metrics)
  assert ready.get_ready(make(*WORK), None, {}).picked == 'cache'
  monkeypatch.setattr(tuning, 'in_table', lambda platform, params: True)
  assert ready.get_ready(make(*WORK), None, {}).picked == 'table'


@pytest.mark.slow
def test_what_is_resumed_runs_as_it_began_without_measuring_again(
  make, tmp_path, unknown, monkeypatch
):
  result = run(make(*WORK), tmp_path / 'runs', quiet=True)
  (result.folder / 'report.html').unlink()
  (unknown / 'execution.json').unlink()
  said = picked(result.folder)
  monkeypatch.setattr(tuning, '_fastest', lambda *given: pytest.fail('it measures again'))
  again = resume(result.folder, quiet=True)
  assert picked(again.folder) == said and said['picked'] == 'measured'
