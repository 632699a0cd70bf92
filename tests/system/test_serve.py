"""A work served to another process by the frozen protocol, and two commits compared by it."""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import rounds, serve, works
from fedjax_mem import data as datasets
from fedjax_mem import models
from fedjax_mem.data import flat
from fedjax_mem.engine import Execution, evaluator, simulate

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
# 40 clients with 6 of 210 examples each: the last ones hold repeated ones.
WORK = dataclasses.replace(works.WORKS['W3'], num_clients=40, cohort=8)


def images(seed, number):
  """Returns images that a logistic model can learn: a bright row says the label."""
  rng = np.random.default_rng(seed)
  y = np.concatenate([np.arange(10), rng.integers(0, 10, number - 10)]).astype(np.int32)
  x = rng.integers(0, 100, (number, 28, 28), np.uint8)
  x[np.arange(number), 2 * y] += 155
  return x, y


@pytest.fixture(scope='module')
def tiny():
  """Returns the data of `WORK`, in the hands of clients as `works.load` does it."""
  x, y = images(0, 210)
  inputs = datasets.from_arrays(x, y, [range(210)]).preprocess
  table = datasets.Table(
    'tiny', {'x': x, 'y': y}, dict(zip('xy', images(1, 2000), strict=True)), 10, (28, 28, 1), inputs
  )
  return datasets.distribute(table, 'blocks', 40, seed=0, examples_per_client=6)


@pytest.fixture(scope='module')
def straight(tiny):
  """Returns rounds -> test accuracy of `WORK`, by the engine alone."""
  model = models.build(WORK.model, tiny.input_shape, tiny.num_classes)
  params = jax.jit(model.init)(jax.random.key(0))
  sim = simulate(
    works.layers(WORK, model),
    params,
    tiny.population(),
    execution=Execution(devices=1),
    max_rounds=100,
    transforms=(tiny.preprocess,),
  )
  score = lambda p, batch: model.metrics(p, tiny.preprocess(batch))
  test = evaluator(score, tiny.test, batch_size=500, mesh=sim.setting.layout.mesh)

  def run(count):
    state, _ = sim.run(sim.init(params), count)
    return test(state.params)['accuracy']

  return run


@pytest.fixture
def folder(tmp_path, tiny):
  """Returns a folder as peers are given it."""
  given = tmp_path / 'given'
  given.mkdir()
  rounds.write(given, WORK, tiny)
  return given


@pytest.fixture
def variables(tmp_path):
  """Returns the environment of processes: no other cache than this test's, no accelerator."""
  cache = {'FEDJAX_MEM_CACHE': str(tmp_path / 'cache'), 'JAX_PLATFORMS': 'cpu'}
  return {**{k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}, **cache}


def git(folder, *words):
  """Returns what git prints in a folder."""
  who = ('-c', 'user.name=Somebody', '-c', 'user.email=somebody@example.org')
  command = ['git', '-C', str(folder), *who, *words]
  return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """Returns a repository of two commits, the second with a benchmarks/serve.py."""
  folder = tmp_path / 'repository'
  (folder / 'benchmarks').mkdir(parents=True)
  git(folder, 'init', '--quiet')
  git(folder, 'commit', '--quiet', '--allow-empty', '--message', 'before')
  (folder / 'benchmarks' / 'serve.py').write_text('')
  git(folder, 'add', '.')
  git(folder, 'commit', '--quiet', '--message', 'served')
  monkeypatch.setattr(rounds, 'ROOT', folder)
  monkeypatch.setenv('FEDJAX_MEM_CACHE', str(tmp_path / 'cache'))
  return folder


def test_a_folder_is_read_as_the_work_that_was_written(folder, tiny):
  work, data = serve.load(folder)
  assert work == WORK
  assert data.preprocess == tiny.preprocess
  assert (data.num_classes, data.input_shape) == (tiny.num_classes, tiny.input_shape)
  read, written = ((d.arrays, d.test, d.index, d.offsets) for d in (data, tiny))
  jax.tree.map(np.testing.assert_array_equal, read, written)


def test_privacy_survives_the_folder(tmp_path, tiny):
  private = dataclasses.replace(WORK, privacy=(0.3, 1.0), accuracy=(14, 0.66))
  rounds.write(tmp_path, private, tiny)
  assert serve.load(tmp_path)[0] == private


def test_a_field_that_is_not_known_is_refused(folder):
  facts = json.loads((folder / 'work.json').read_text())
  (folder / 'work.json').write_text(json.dumps({**facts, 'dropout': 0.5}))
  with pytest.raises(TypeError, match='dropout'):
    serve.load(folder)


def test_a_served_work_answers_the_protocol(folder, straight, variables):
  # Accuracies in the midst of learning, on enough images to tell other parameters apart. 66 rounds
  # are more than one dispatch.
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.serve', str(folder), '--devices=1'],
    input='1\n2\naccuracy\n66\naccuracy\n',
    env=variables,
    cwd=ROOT,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  versions, one, two, early, many, late = map(json.loads, done.stdout.splitlines())
  assert versions['jax'] == jax.__version__
  assert versions['root'] == str(ROOT)
  assert [len(answer['seconds']) for answer in (one, two, many)] == [1, 2, 66]
  assert all(s > 0 for answer in (one, two, many) for s in answer['seconds'])
  assert len(set(many['seconds'])) == 2  # a dispatch of 64 and one of 2
  assert early['accuracy'] == pytest.approx(straight(3))
  assert late['accuracy'] == pytest.approx(straight(69))
  assert late['accuracy'] > early['accuracy'] + 0.2


def test_what_is_no_commit_is_refused(repository, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['rounds', '--against-commit', '0123abc'])
  with pytest.raises(SystemExit, match=r'must be a commit of .*, got .0123abc'):
    rounds.main()


def test_a_commit_that_cannot_be_served_is_refused(repository):
  with pytest.raises(SystemExit, match=r'with benchmarks/serve\.py, got .HEAD~1.'):
    rounds.checkout('HEAD~1')


def test_a_worktree_is_found_again_and_made_anew_where_it_is_not_whole(repository):
  commit, tree = rounds.checkout('HEAD')
  assert commit == git(repository, 'rev-parse', 'HEAD') == git(tree, 'rev-parse', 'HEAD')
  kept = (tree / 'benchmarks' / 'serve.py').stat().st_ino
  assert rounds.checkout(commit[:10]) == (commit, tree)
  assert (tree / 'benchmarks' / 'serve.py').stat().st_ino == kept
  (tree / 'benchmarks' / 'serve.py').write_text('changed')
  rounds.checkout('HEAD')
  assert (tree / 'benchmarks' / 'serve.py').read_text() == ''
  shutil.rmtree(tree)  # git still knows it
  rounds.checkout('HEAD')
  assert (tree / 'benchmarks' / 'serve.py').exists()
  git(repository, 'worktree', 'remove', '--force', str(tree))
  rounds.checkout('HEAD')
  assert (tree / 'benchmarks' / 'serve.py').exists()


def test_only_a_complete_environment_is_used_again(tmp_path, monkeypatch):
  commands = []

  def run(command, **_):
    commands.append(command)
    return subprocess.CompletedProcess(command, int('pip' in command and fails))

  monkeypatch.setattr(subprocess, 'run', run)
  (tmp_path / 'environment').mkdir()
  fails = True
  with pytest.raises(SystemExit, match='--commit-python'):
    rounds.environment(tmp_path / 'tree')
  fails = False
  python = rounds.environment(tmp_path / 'tree')
  assert python == str(tmp_path / 'environment' / 'bin' / 'python')
  assert len(commands) == 4 and commands[-1][0] == python
  assert rounds.environment(tmp_path / 'tree') == python
  assert len(commands) == 4


def test_figures_of_another_package_are_refused(tmp_path):
  python = tmp_path / 'python'
  python.write_text(f"""#!{sys.executable}\nprint('{{"fedjax_mem": "0", "root": "/other"}}')\n""")
  python.chmod(0o700)
  args = argparse.Namespace(execution='auto', devices='auto', no_pool=False)
  with pytest.raises(SystemExit, match=f'the one in {tmp_path}, got the one in /other'):
    rounds._served(args, 'folder', tmp_path, 'commit', str(python))


@pytest.mark.slow
def test_two_commits_are_compared_segment_by_segment(tmp_path, variables):
  clone = tmp_path / 'clone'
  for name in ('benchmarks', 'fedjax_mem'):
    shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns('__pycache__'))
  (clone / '.gitignore').write_text('__pycache__/\n')
  version = clone / 'fedjax_mem' / '_version.py'
  version.write_text("__version__ = '0.0.1'\n")
  git(clone, 'init', '--quiet')
  git(clone, 'add', '.')
  git(clone, 'commit', '--quiet', '--message', 'then')
  then = git(clone, 'rev-parse', 'HEAD')
  version.write_text("__version__ = '0.0.2'\n")
  splits = {
    name: [flat.Block(*images(seed, number))]
    for seed, (name, number) in enumerate({'train': 210, 'test': 200}.items())
  }
  facts = flat.Facts('fashion_mnist', 10, (28, 28, 1), divisor=255.0)
  flat.write(tmp_path / 'data' / 'fashion_mnist' / '1.0.0', facts, splits)
  work = ['--work=W3', '--population=40', '--cohort=8', '--rounds=100', '--devices=1']
  command = [sys.executable, '-m', 'benchmarks.rounds', *work, f'--data-dir={tmp_path / "data"}']
  done = subprocess.run(
    [*command, '--against-commit', then[:9], '--commit-python', sys.executable],
    env=variables,
    cwd=clone,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  line = json.loads(done.stdout)
  assert line['peer'] == f'commit {then[:12]}, fedjax_mem 0.0.1, jax {jax.__version__}'
  assert line['ours'] == f'commit {then[:12]} with changes, fedjax_mem 0.0.2, jax {jax.__version__}'
  assert line['accuracy'] == line['peer_accuracy'] > 0.3
  assert line['ratio'] > 0 and line['ratio_p10'] <= line['ratio_p90']
  assert line['segments'] >= 2
