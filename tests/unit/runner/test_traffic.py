"""Bytes in records, progress and reports of a run, and the table of codecs."""

import dataclasses
import json

import pytest

from fedjax_mem.cli import main as cli
from fedjax_mem.config.load import StageSection, config_hash
from fedjax_mem.core import Layer, Stage
from fedjax_mem.report.runs import load_run
from fedjax_mem.report.tables import summarise
from fedjax_mem.runner import loop
from fedjax_mem.studies import cells
from fedjax_mem.studies import compression as table

PARAMETERS = 650  # of the logistic model on digits
DENSE = 4 * PARAMETERS + 25


@pytest.fixture
def with_stage(make):
  def config(use, *overrides, before=False, **options):
    stage = StageSection(use=use, options=options, before_algorithm=before)
    return dataclasses.replace(make('rounds=2', *overrides), stages=(stage,))

  return config


@pytest.mark.slow
def test_a_run_without_codecs_counts_its_arrays(make, tmp_path, capsys, undrawn):
  result = loop.run(make('rounds=2'), tmp_path)
  for record in result.metrics:
    assert record['bytes_up'] == record['bytes_down'] == 4 * DENSE
  assert 'sent 42.0 kB' in ' '.join(capsys.readouterr().out.split())
  summary = summarise(load_run(result.folder))
  assert summary['bytes_up'] == summary['bytes_down'] == 8 * DENSE
  assert 'sent by clients' in (result.folder / 'report.html').read_text()


@pytest.mark.slow
def test_what_an_algorithm_sends_beside_the_parameters_is_counted(
  make, with_stage, tmp_path, undrawn
):
  plain = loop.run(make('rounds=1', 'algorithm.name=scaffold'), tmp_path).metrics[0]
  assert plain['bytes_down'] == 4 * 2 * DENSE and plain['bytes_up'] == 4 * (8 * PARAMETERS + 35)
  coded = with_stage('downlink', 'algorithm.name=scaffold', 'rounds=1', before=True)
  short = 15 + 10 + PARAMETERS + 10 + 4  # of the parameters; the control comes as it is
  assert loop.run(coded, tmp_path).metrics[0]['bytes_down'] == 4 * (short + DENSE)


@pytest.mark.slow
def test_codecs_up_and_down(with_stage, tmp_path, undrawn):
  up = loop.run(with_stage('quantize', bits=8), tmp_path).metrics
  assert {r['bytes_up'] for r in up} == {4 * (15 + 10 + PARAMETERS + 10 + 4)}
  assert {r['bytes_down'] for r in up} == {4 * DENSE}
  assert not [k for k in up[0] if k.endswith(('_high', '_low'))]
  down = loop.run(with_stage('downlink', before=True), tmp_path).metrics
  assert {r['bytes_down'] for r in down} == {4 * (15 + 10 + PARAMETERS + 10 + 4)}
  assert {r['bytes_up'] for r in down} == {4 * DENSE}


@pytest.mark.slow
def own():
  """Returns a layer that does not state what it does to messages."""
  return Layer('own', client=Stage(lambda ctx, message, state: (message, state, {})))


@pytest.mark.slow
def test_bytes_of_what_is_not_stated_are_unknown(with_stage, tmp_path, undrawn):
  result = loop.run(with_stage(f'{__name__}:own'), tmp_path)
  assert all('bytes_up' not in x and x['bytes_down'] > 0 for x in result.metrics)
  told = json.loads((result.folder / 'manifest.json').read_text())['warnings']
  assert [x for x in told if 'bytes up are unknown' in x and "client side of 'own'" in x]


@pytest.mark.slow
def test_feedback_across_clients_that_rarely_return(with_stage, tmp_path, undrawn):
  codec = {'use': 'top_k', 'fraction': 0.1}
  result = loop.run(with_stage('error_feedback', codec=codec), tmp_path)
  told = json.loads((result.folder / 'manifest.json').read_text())['warnings']
  assert any("'error_feedback' remembers" in x and '0.67 times in 2 rounds' in x for x in told)
  assert any('MB for 12 clients' in x for x in told)


@pytest.mark.slow
def test_the_table_runs_what_is_missing_and_no_more(tiny, tmp_path, monkeypatch, capsys):
  out = tmp_path / 'out'
  words = ['table', 'compression', tiny, '--rounds', 2, '--codecs', 'eden_2', '--out', out]
  assert cli.main([str(x) for x in words]) == 0
  said = capsys.readouterr().out
  assert 'tiny-eden_2, seed 0: running' in said and 'fewer' in said
  lines = (out / 'compression.csv').read_text().splitlines()
  assert lines[0].startswith('codec,bytes up,fewer,bytes down,accuracy')
  assert lines[1].startswith(f'none,{DENSE},') and lines[2].startswith('eden_2,')
  assert (out / 'compression.png').read_bytes().startswith(b'\x89PNG')

  def must_not(*args, **options):
    raise RuntimeError('it was run again')

  monkeypatch.setattr(cells, 'run', must_not)
  assert cli.main([str(x) for x in words]) == 0
  assert capsys.readouterr().out.count('finished before') == 2


@pytest.mark.slow
def test_the_table_resumes_what_was_interrupted(make, tmp_path, monkeypatch, undrawn):
  base, told = make('rounds=1'), []
  table.compression(base, tmp_path, codecs=(), tell=told.append)
  config = dataclasses.replace(base, name='tiny-none')
  manifest = tmp_path / f'tiny-none-{config_hash(config)}' / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('"finished"', '"interrupted"'))
  (entry,) = table.compression(base, tmp_path, codecs=(), tell=told.append)
  assert told == ['tiny-none, seed 0: running', 'tiny-none, seed 0: resuming']
  assert entry.size == DENSE and len(entry.accuracies) == 1


def test_bad_input_of_the_table(make, tmp_path):
  with pytest.raises(ValueError, match=r"codecs must be one of .* Did you mean 'eden_2'"):
    table.compression(make(), tmp_path, codecs=['eden2'])
  with pytest.raises(ValueError, match='seeds must be at least one'):
    table.compression(make(), tmp_path, seeds=())
  assert not list(tmp_path.glob('tiny-*'))


@pytest.mark.parametrize('label', [x for x in table.CODECS if x != table.PLAIN])
def test_every_entry_of_the_table_is_a_stage(label):
  from fedjax_mem.config import registry

  stage = table.CODECS[label]
  make = registry.factory('use', stage['use'], registry.LAYERS)
  registry.call('stages', make, stage.get('options', {}))
