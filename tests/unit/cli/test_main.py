"""The command line: what it prints, its exit codes, and real processes that are interrupted."""

import dataclasses
import json
import resource
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from reference.experiments import one_line, only

from fedjax_mem.cli import main as cli
from fedjax_mem.cli.run import tell
from fedjax_mem.data import flat
from fedjax_mem.report.tracker import read_metrics


@pytest.fixture
def call(capsys):
  """Returns what a command gives: (exit code, output, errors)."""

  def main(*words):
    try:
      code = cli.main([str(x) for x in words])
    except SystemExit as end:  # how the argument parser ends
      code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err

  return main


# Commands.


@pytest.mark.slow
def test_run_then_again_then_report(call, tiny, tmp_path):
  out = tmp_path / 'runs'
  words = ('run', tiny, '--out', out, '--set', 'rounds=2', '--set', 'client.learning_rate=0.2')
  code, said, _ = call(*words)
  assert code == 0
  folder = only(out)
  assert f'folder: {folder}' in ' '.join(said.split())
  assert 'round 2: test accuracy 0.' in said and 'compiling' in said
  text = (folder / 'config.toml').read_text()
  assert 'rounds = 2' in text and 'learning_rate = 0.2' in text
  assert len(read_metrics(folder / 'metrics.jsonl')) == 2

  code, said, _ = call(*words, '--quiet')
  second = folder.with_name(folder.name + '-2')
  assert code == 0 and str(second) in ' '.join(said.split())

  code, said, _ = call('report', folder, second)
  assert code == 0 and folder.name in said and second.name in said
  page = (out / 'report.html').read_text()
  assert folder.name in page and second.name in page

  code, _, err = call('resume', folder)
  assert code == 2 and 'it is finished' in one_line(err)


def test_data_show_draws_the_partition(call, tiny, tmp_path):
  picture = tmp_path / 'picture.png'
  code, said, _ = call('data', 'show', tiny, '--out', picture, '--set', 'data.num_clients=7')
  assert code == 0 and '7 clients, 1438 examples' in said and 'held out' not in said
  assert picture.read_bytes().startswith(b'\x89PNG')
  more = ('--set', 'data.partition=column', '--set', 'data.options.column=y', '--set')
  code, said, _ = call(
    'data', 'show', tiny, '--out', picture, *more, 'data.num_clients=', *more[-1:],
    'selection.cohort_size=3', *more[-1:], 'evaluation.clients=0.5',
  )  # fmt: skip
  assert code == 0 and '10 clients, 717 examples, 69 to 73 a client' in said
  assert 'held out besides: 721 examples, 70 to 73 a client' in said


def test_data_list_and_doctor(call, tmp_path):
  code, said, _ = call('data', 'list', '--data-dir', tmp_path)
  assert code == 0 and 'digits' in said and 'built in' in said
  assert 'fedjax-mem data prepare fashion_mnist' in said
  code, said, _ = call('doctor')
  assert code in (0, 1) and 'jax' in said and 'digits' in said


def test_help_teaches(call):
  code, said, _ = call('--help')
  assert code == 0
  assert all(word in said for word in ('run', 'resume', 'report', 'data', 'doctor'))
  code, said, _ = call('run', '--help')
  said = ' '.join(said.split())
  assert code == 0 and '--set server.learning_rate=0.5' in said and '--debug' in said


# Bad input: exit code 2, one line.


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (
      ['rouns=3'],
      "rouns must be a key of the top level, got an unknown one. Did you mean 'rounds'",
    ),
    (['client.learning_rte=1'], "Did you mean 'learning_rate'"),
    (['client.epochs=two'], "client.epochs must be an integer, got 'two'"),
    (['rounds=2', 'client.learning_rate=-0.1'], 'client.learning_rate must be a finite number > 0'),
    (['client.learning_rate=nan'], 'got nan'),
    (['server.learning_rate=inf'], 'server.learning_rate must be a finite number > 0, got inf'),
    (['client.batch_size=0'], 'client.batch_size must be an integer >= 1 and <= 2147483647, got 0'),
    (['selection.cohort_size=13'], 'selection.cohort_size must be at most data.num_clients = 12'),
    (['version=2'], 'version must be 1, the one that this package reads, got 2'),
    (['data.name=fashion_mnst'], "Did you mean 'fashion_mnist'"),
    (['seed'], "an override must be 'section.key=value', got 'seed'"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, tiny, tmp_path, overrides, words):
  sets = [word for x in overrides for word in ('--set', x)]
  code, _, err = call('run', tiny, '--out', tmp_path / 'runs', *sets)
  assert code == 2
  assert words in one_line(err)
  assert not (tmp_path / 'runs').exists()


def test_debug_shows_where(call, tiny, tmp_path):
  code, _, err = call('run', tiny, '--set', 'rounds=0', '--debug')
  assert code == 2
  assert 'Traceback' in err and 'load_config' in err
  assert err.splitlines()[-1].startswith('fedjax-mem: error: rounds must be')


def test_files_that_are_not_there(call, tiny, tmp_path):
  code, _, err = call('run', tiny.with_name('tinny.toml'))
  assert code == 2 and "Did you mean 'tiny.toml'" in one_line(err)
  code, _, err = call('resume', tmp_path)
  assert code == 2 and 'must be a folder with config.toml and manifest.json' in one_line(err)
  code, _, err = call('report', tmp_path)
  assert code == 2 and 'a run must be a folder' in one_line(err)
  code, _, err = call('report')
  assert code == 2 and 'at least one folder' in one_line(err)
  code, _, err = call('data', 'prepare', 'no_such_data', '--data-dir', tmp_path)
  assert code == 2 and 'no_such_data' in one_line(err)


def test_data_that_are_missing_or_half_written_name_the_remedy(call, tiny, tmp_path):
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'data.name=fashion_mnist')
  code, _, err = call(*words, '--data-dir', tmp_path)
  assert code == 2 and 'fedjax-mem data prepare fashion_mnist' in one_line(err)
  half = tmp_path / 'fashion_mnist' / '1.0.0'
  half.mkdir(parents=True)
  (half / 'dataset_info.json').write_text('{"name": ')
  code, _, err = call(*words, '--data-dir', tmp_path)
  assert code == 2 and 'fedjax-mem data prepare fashion_mnist' in one_line(err)


@pytest.mark.parametrize(
  'words', [(), ('rum',), ('run',), ('run', 'x.toml', '--sett', 'a=b'), ('data',)]
)
def test_a_command_that_is_none_is_exit_code_2(call, words):
  code, said, err = call(*words)
  assert code == 2
  assert '--help' in said + err


def test_an_out_folder_that_cannot_be_made(call, tiny, tmp_path):
  (tmp_path / 'file').write_text('')
  code, _, err = call('run', tiny, '--out', tmp_path / 'file' / 'runs')
  assert code == 2 and 'must be writable' in one_line(err)


# Failures: exit code 1.


@pytest.mark.slow
def test_a_run_that_fails_is_exit_code_1(call, tiny, tmp_path):
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'client.learning_rate=1e38')
  code, _, err = call(*words)
  assert code == 1
  assert err.startswith('fedjax-mem: failed: ') and 'is the usual remedy' in one_line(err)
  assert call(*words)[0] == 1  # in a folder of its own, beside the first
  assert len(list((tmp_path / 'runs').iterdir())) == 2


def test_a_mistake_in_the_users_own_code_says_how_to_see_where(call, tiny, tmp_path, layers):
  (layers / 'mistaken.py').write_text('def layer():\n  return 1 + None\n')
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'stages=[{use="mistaken:layer"}]')
  code, _, err = call(*words)
  assert code == 1
  assert one_line(err).startswith('fedjax-mem: failed: TypeError: unsupported operand')
  assert '(--debug shows where)' in err
  code, _, err = call(*words, '--debug')
  assert code == 1 and 'mistaken.py", line 2, in layer' in err


@pytest.mark.slow
def test_damaged_checkpoints_are_exit_code_1(call, tiny, tmp_path, monkeypatch):
  def never(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('fedjax_mem.runner.rounds.Rounds._finish', never)
    code, _, err = call('run', tiny, '--out', tmp_path / 'runs', '--set', 'rounds=2')
  assert code == 130 and 'stopped by Ctrl-C' in one_line(err)
  folder = only(tmp_path / 'runs')
  for path in (folder / 'checkpoints').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  code, _, err = call('resume', folder)
  assert code == 1 and 'no sound checkpoint' in one_line(err)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Error writing persistent compilation cache')
def test_a_full_disk_is_one_line_and_exit_code_1(call, tiny, tmp_path):
  # Nothing larger than 100 kB can be written, as the model's checkpoint is.
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    code, _, err = call(
      'run', tiny, '--out', tmp_path / 'runs', '--set', 'model.name=mlp',
      '--set', 'model.options={hidden=[2000]}',
    )  # fmt: skip
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert code == 1
  assert 'checkpoint of round 1 cannot be written' in one_line(err)


# Processes.


def test_the_help_needs_no_heavy_imports():
  code = (
    'import sys\nfrom fedjax_mem.cli import main as cli\n'
    "try:\n  cli.main(['run', '--help'])\nexcept SystemExit:\n  pass\n"
    "heavy = {'jax', 'numpy', 'optax', 'flax', 'orbax', 'matplotlib', 'sklearn',"
    " 'tensorflow_datasets', 'scipy', 'rich.progress'}\n"
    'print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True,
    cwd=Path(__file__).parents[3],
  )  # fmt: skip
  assert done.stderr.strip() == '[]'


def test_the_last_line_marks_what_a_claim_does_not_cover(capsys):
  scores = {'round': 3, 'test_accuracy': 0.5, 'client_accuracy_mean': 0.25}
  for claim, said in (({}, ''), ({'covered': ['round', 'test_accuracy']}, ' (not covered)')):
    tell(types.SimpleNamespace(metrics=[scores | claim], folder='there'))
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f'round 3: test accuracy 0.5000, client accuracy mean 0.2500{said}'


def test_a_table_of_another_experiment_says_so(call, tiny, tmp_path):
  from fedjax_mem.config.load import config_hash
  from fedjax_mem.studies import cells, niid_bench

  changed = ['data.name=digits', 'rounds=3']
  (cell,) = cells.cells_of(niid_bench.TABLE, ['fedavg/iid'], config=tiny, overrides=changed)
  facts = {'method': 'fedavg', 'partition': 'iid', 'seed': 42, 'rounds': 3, 'best_accuracy': 0.9}
  facts |= {'commit': 'a', 'curve': {'1': 0.9}, 'config_hash': config_hash(cell.config)}
  (tmp_path / 'cells').mkdir()
  (tmp_path / 'cells' / cell.file).write_text(json.dumps(facts))
  words = ('table', 'niid_bench', tiny, '--set', changed[0], '--rounds', 3, '--only-show')
  code, said, _ = call(*words, '--cells', 'fedavg/iid', '--out', tmp_path)
  note = f"not the table's own experiment: {tiny}, data.name=digits, rounds=3"
  assert code == 0 and note in said and note in (tmp_path / 'niid_bench.md').read_text()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('compression', '--cells', 'x'), "--cells must be left out of table 'compression'"),
    (('niid_bench', '--codecs', 'eden_2'), '--codecs must be left out of table'),
    (('distributed_dp', '--attackers', 0.3), '--attackers must be left out of table'),
    (('privacy', '--rounds', 3), "--rounds must be left out of table 'privacy'"),
    (('privacy', 'quickstart'), "CONFIG must be left out of table 'privacy'"),
  ],
)
def test_an_option_of_another_table_is_refused(call, words, message):
  from fedjax_mem.cli import tables

  assert tables._OF.keys() <= {x.name for x in dataclasses.fields(tables.Table)}
  code, _, err = call('table', *words)
  assert code == 2 and message in one_line(err)


def test_help_the_list_of_data_and_a_citation_import_no_jax(tmp_path):
  flat_home = tmp_path / 'mine' / '1.0.0'
  block = flat.Block(np.zeros((6, 2), np.uint8), np.array([0, 1, 2, 0, 1, 2], np.int32))
  flat.write(flat_home, flat.Facts('mine', 3, (2,)), {'train': [block], 'test': [block]})
  (tmp_path / 'config.toml').write_text('[algorithm]\nname = "scaffold"\n')
  words = [['data', 'list', '--data-dir', str(tmp_path)], ['cite', str(tmp_path)], ['--help']]
  code = (
    'import sys\nfrom fedjax_mem.cli.main import main\n'
    f'for words in {words!r}:\n  try:\n    main(words)\n  except SystemExit:\n    pass\n'
    'print(sorted({"jax", "flax", "matplotlib", "typeguard"} & set(sys.modules)))\n'
  )
  said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  said = said.stdout
  assert 'cite' in said and 'scaffold' in said
  assert '6 + 6 examples' in said and said.splitlines()[-1] == '[]'
