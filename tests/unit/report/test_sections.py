"""The sections of a run's page: what they say, from what its folder holds."""

import json

import pytest

from fedjax_mem.report import Run, partition, save, sections


@pytest.fixture
def whole(tmp_path):
  save(partition([[1, 2]]), tmp_path / 'partition.png')
  told = {'score': 'accuracy', 'values': [0.5, 0.25, 1.0], 'less_is_better': False, 'round': 3}
  (tmp_path / sections.SCORES).write_text(json.dumps(told))
  records = [
    {
      'round': r, 'seconds': s, 'clients': 4, 'bytes_up': 400_000, 'bytes_down': 4_000,
      'test_accuracy': 0.5, 'epsilon': 1.0 * r,
    }
    for r, s in ((1, 3.0), (2, 1.0), (3, 1.0))
  ]  # fmt: skip
  manifest = {
    'compile_seconds': 61.0,
    'time': {'evaluation': 0.5},
    'execution': {'words': '5 clients side by side'},
    'privacy': {'statements': ['ε = 1 of all']},
    'coverage': {'covered': ['round'], 'not covered': ['seconds', 'clients']},
  }
  return Run(name='a', records=records, manifest=manifest, folder=tmp_path)


@pytest.mark.slow
def test_a_whole_run(whole):
  made = {x.key: x for x in sections.of_run(whole)}
  assert list(made) == ['clients', 'partition', 'sent', 'privacy', 'time']
  assert made['clients'].lines == [
    '3 clients are scored on what they hold out. '
    'Median 0.5, worst 0.25, best 1 (accuracy, after round 3).'
  ]
  cells = [[c.text for c in row.cells] for row in made['sent'].table.rows]
  assert cells == [
    ['sent by clients, all rounds', '1.2 MB'],
    ['sent to clients, all rounds', '12.0 kB'],
    ["a client's message, up", '100.0 kB'],
    ["a client's message, down", '1.0 kB'],
  ]
  assert made['privacy'].lines == [
    'ε = 1 of all', 'The claim covers round.', 'It does not cover seconds, clients.'
  ]  # fmt: skip
  cells = [[c.text for c in row.cells] for row in made['time'].table.rows]
  assert cells == [
    ['compiling', '1 min 01 s'], ['3 rounds', '5.0 s'], ['a round, median', '1.0 s'],
    ['evaluation', '0.5 s'],
  ]  # fmt: skip
  assert made['partition'].picture.dark == made['partition'].picture.light  # an older run has one


@pytest.mark.slow
def test_a_claim_marks_what_it_does_not_cover(whole):
  claimed = [r | {'covered': ['round', 'epsilon']} for r in whole.records]
  run = Run(name='a', records=claimed, manifest=whole.manifest, folder=whole.folder)
  titles = [x.title for x in sections.of_run(run)]
  assert [x for x in titles if 'not covered' not in x] == ['How the clients fare', 'Privacy']
  scored = [r | {'client_accuracy_mean': 0.5} for r in claimed]
  run = Run(name='a', records=scored, folder=whole.folder)
  assert 'not covered' in sections.of_run(run)[0].title


def test_records_alone_and_several_runs(whole):
  assert sections.of_run(Run(name='x', records=[{'round': 1, 'train_loss': 1.0}])) == []
  assert [x.key for x in sections.of_runs([whole, whole])] == ['sent']
  assert sections.of_runs([Run(name='x', records=[]), Run(name='y', records=[])]) == []
