"""The command `plan`: what it prints, as text and as JSON, and its exit codes."""

import json

import pytest
from reference.experiments import one_line

from fedjax_mem.cli import main as cli
from fedjax_mem.cli.plan import lines
from fedjax_mem.runner.planning import plan
from fedjax_mem.runner.programs import Program


@pytest.fixture
def call(capsys):
  """Returns what `fedjax-mem plan` gives: (exit code, output, errors)."""

  def main(*words):
    code = cli.main(['plan', *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err

  return main


def test_a_plan_in_words(call, tiny):
  code, said, err = call(tiny)
  assert code == 0 and not err
  rows = dict(line.split('  ', 1) for line in said.splitlines())
  starts = {len(line) - len(line.split('  ', 1)[1].lstrip()) for line in said.splitlines()}
  assert len(starts) == 1  # aligned
  assert rows['cohort'].strip() == '4 clients, every round'
  assert rows['side by side'].strip() == '4 on a device, 1 device(s)'
  assert rows['sent up'].strip() == '2,625 B a client, 10,500 B a round'
  assert rows['parameters'].strip() == '2,600 B'
  assert 'estimated' in rows['peak of a round'] and rows['memory'].endswith(': fits')
  assert rows['programs'].strip().startswith('5 compiled: initial parameters; ')


def test_a_plan_as_json(call, tiny):
  code, said, _ = call(tiny, '--json', '--set', 'stages=[{use = "median"}]')
  found = json.loads(said)
  assert code == 0 and found['fits'] and found['up'] == [2625, 2625]
  assert found['stack'] == 4 * 2604 and found['server_states']['median'] == 0
  peak = found['peak']
  assert peak['total'] == peak['arguments'] + peak['beside'] and found['compiled'] is None


@pytest.mark.parametrize('json', [(), ('--json',)])
def test_what_does_not_fit_exits_1(call, tiny, json):
  code, said, err = call(tiny, '--memory', 0.01, *json)
  assert code == 1 and said
  assert 'failed: the run must fit the 10,000 B of all devices (given)' in one_line(err)


@pytest.mark.parametrize(
  'words, said',
  [
    (('--memory', -1), 'memory must be a finite number > 0, got -1.0'),
    (('--set', 'selection.cohort_size=13'), 'selection.cohort_size must be at most'),
  ],
)
def test_bad_input_exits_2(call, tiny, words, said):
  code, out, err = call(tiny, *words)
  assert code == 2 and not out and said in one_line(err)


@pytest.mark.slow
def test_the_compilers_number_on_request(call, tiny):
  code, said, _ = call(tiny, '--compile')
  assert code == 0 and 'by the compiler' in said and 'the estimate is ' in said


def test_what_is_unknown_or_a_range_is_said(make):
  found = plan(make())
  more = (Program('segment of a candidate', '_segment', 1, 4),)
  other = found._replace(
    up=None, down=(10, 20), programs=more, resumed=(Program('noise', 'x'),), operations=3,
    steady=False, pooled=True, divided=True, streamed=True, stack=12_000_000,
    client_states={'feedback': 5}, server_states={'algorithm': 7},
  )  # fmt: skip
  said = '\n'.join(lines(other))
  for words in (
    'unknown: a layer', '10 to 20 B a client, about 40 to 80 B', '1 to 4 compiled', '(1 to 4)',
    'and 3 single operations', 'their number differs', 'pooled', '5 B, divided over 1', '12.0 MB',
    'of one segment', 'when resumed',
  ):  # fmt: skip
    assert words in said
