"""The secret root of a run: in one file that its owner alone reads, and nowhere else."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner import prepare, secret
from fedjax_mem.runner.ledgers import REPEATABLE
from fedjax_mem.runner.loop import resume, run

pytestmark = pytest.mark.usefixtures('undrawn')

RUN = 'ab' * 16  # an id
ROOT = np.array([0xDEADBEEF, 0x00C0FFEE], np.uint32)
TREE = (
  'rounds=3', 'selection.name=round_robin', 'weighting.name=equal', 'weighting.options={divisor=4}',
  'stages=[{use="tree", options={l2_clip_norm=0.5, noise_multiplier=2.0, restart=2}}]',
  'privacy.delta=1e-3', 'execution.checkpoint_every_seconds=0',
  'execution.max_segment_rounds=1',
)  # fmt: skip


def bits(params):
  return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(params)]


def test_a_root_comes_back_and_only_its_owner_can_read_the_file(tmp_path):
  secret.write(tmp_path, ROOT, RUN)
  held = secret.read(tmp_path, RUN)
  assert held.dtype == np.uint32 and held.tolist() == ROOT.tolist()
  (file,) = tmp_path.iterdir()
  assert file.name == 'noise.key' and file.stat().st_mode & 0o777 == 0o600
  with pytest.raises(FileExistsError):
    secret.write(tmp_path, ROOT, RUN)


@pytest.mark.parametrize('mine', ['cd' * 16, None], ids=['another id', 'no id'])
def test_the_file_of_another_run_is_refused_and_not_quoted(tmp_path, mine):
  secret.write(tmp_path, ROOT, RUN)
  with pytest.raises(ValueError, match=r'noise.key must be .*, got that of another run') as raised:
    secret.read(tmp_path, mine)
  said = str(raised.value)
  assert RUN not in said and 'deadbeef' not in said.lower() and '\n' not in said


@pytest.mark.parametrize('text', ['', 'deadbeef', 'deadbeef00c0ffee00', 'secret words', 'é' * 8])
def test_another_file_is_refused_and_not_quoted(tmp_path, text):
  (tmp_path / secret.FILE).write_text(text)
  with pytest.raises(ValueError, match=r'noise.key must be the secret root') as raised:
    secret.read(tmp_path, RUN)
  assert not text or text not in str(raised.value)
  assert raised.value.__cause__ is None and '\n' not in str(raised.value)


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
  """(configuration, result) of a run with correlated noise, whose root is `ROOT`."""
  from reference.experiments import TINY

  from fedjax_mem.config.load import load_config

  file = tmp_path_factory.mktemp('config') / 'tiny.toml'
  file.write_text(TINY)
  config = load_config(file, TREE)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.report.figures.png', lambda *args, **options: b'\x89PNG')
    patch.setattr('fedjax_mem.core.keys.fresh_root', lambda: ROOT)
    return config, run(config, tmp_path_factory.mktemp('runs'), quiet=True)


def test_the_root_is_in_its_file_and_in_nothing_else_of_the_folder(kept):
  folder = kept[1].folder
  run_id = json.loads((folder / 'manifest.json').read_text())['run_id']
  assert secret.read(folder, run_id).tolist() == ROOT.tolist()
  assert (folder / secret.FILE).stat().st_mode & 0o777 == 0o600
  words = [x.tobytes() for x in (ROOT, ROOT[:1], ROOT[1:], ROOT.byteswap())]
  texts = [f'{x:x}' for x in ROOT.tolist()] + [str(x) for x in ROOT.tolist()]
  for file in folder.rglob('*'):
    if file.is_file() and file.name != secret.FILE:
      held = file.read_bytes()
      assert not any(x in held for x in words), file
      assert not any(x.encode() in held.lower() for x in texts), file


def test_who_sees_a_ready_run_in_a_message_does_not_see_its_root(kept, monkeypatch):
  monkeypatch.setattr('fedjax_mem.core.keys.fresh_root', lambda: ROOT)
  ready = prepare.get_ready(kept[0], None, {})
  assert ready.sim.root.tolist() == ROOT.tolist()
  assert not any(str(x) in repr(ready.sim) for x in ROOT.tolist())


def test_checkpoints_of_a_claimed_run_are_its_owners_and_hold_no_noise(kept, state_of):
  folder = kept[1].folder
  assert (folder / 'checkpoints').stat().st_mode & 0o777 == 0o700
  held = state_of(folder)
  assert not any(name.startswith('servers/tree') for name in held), held.keys()


def unfinished(folder, tmp_path):
  """Returns a copy of a run as if it had been killed after its first checkpoint."""
  copy = shutil.copytree(folder, tmp_path / 'copy')
  (copy / 'report.html').unlink()
  for number in sorted((copy / 'checkpoints').iterdir(), key=lambda x: int(x.name))[1:]:
    shutil.rmtree(number)
  return copy


@pytest.mark.slow
def test_a_resumed_run_draws_its_noise_again_from_its_root(kept, tmp_path):
  folder = unfinished(kept[1].folder, tmp_path)
  result = resume(folder, quiet=True)
  assert json.loads((folder / 'manifest.json').read_text())['resumed'] == [1]
  assert bits(result.params) == bits(kept[1].params)


def test_a_claimed_run_without_its_root_is_not_resumed(kept, tmp_path):
  folder = unfinished(kept[1].folder, tmp_path)
  (folder / secret.FILE).unlink()
  with pytest.raises(ValueError, match=r'copy/noise.key must be the secret root .*, got none') as e:
    resume(folder, quiet=True)
  assert '\n' not in str(e.value)


@pytest.fixture
def twin(kept, tmp_path):
  """The folder of another run of the same configuration, with the same root."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.core.keys.fresh_root', lambda: ROOT)
    return run(kept[0], tmp_path / 'twin', quiet=True).folder


@pytest.mark.slow
def test_the_root_of_another_run_is_not_taken_for_its_own(kept, twin, tmp_path):
  folder = unfinished(kept[1].folder, tmp_path)
  shutil.copy(twin / secret.FILE, folder / secret.FILE)
  with pytest.raises(ValueError, match=r'copy/noise.key must be .*, got that of another run') as e:
    resume(folder, quiet=True)
  assert '\n' not in str(e.value)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused_and_the_one_before_it_used(kept, twin, tmp_path):
  folder = unfinished(kept[1].folder, tmp_path)
  shutil.copytree(twin / 'checkpoints' / '2', folder / 'checkpoints' / '2')
  result = resume(folder, quiet=True)
  said = json.loads((folder / 'manifest.json').read_text())
  assert said['resumed'] == [1]
  assert 'checkpoint 2 is refused: it is of another run' in said['warnings']
  assert bits(result.params) == bits(kept[1].params)


@pytest.mark.slow
def test_noise_is_another_in_each_run_unless_noise_seed_makes_it_repeatable(kept, tmp_path):
  config = dataclasses.replace(kept[0], rounds=1)
  again = [run(config, tmp_path / 'fresh', quiet=True) for _ in range(2)]
  assert bits(again[0].params) != bits(again[1].params)
  seeded = dataclasses.replace(config, noise_seed=3)
  same, other = (run(seeded, tmp_path / 'seeded', quiet=True) for _ in range(2))
  assert bits(same.params) == bits(other.params)
  assert not (same.folder / secret.FILE).exists()
  for result, noted in ((same, True), (again[0], False)):
    (said,) = json.loads((result.folder / 'manifest.json').read_text())['privacy']['statements']
    assert said.endswith(f'; {REPEATABLE}') is noted
    ledger = json.loads((result.folder / 'ledger.json').read_text())
    assert (REPEATABLE in ledger['guarantee']['notes']) is noted


@pytest.mark.slow
def test_without_a_claim_there_is_no_root_and_the_checkpoints_are_open(make, tmp_path):
  result = run(make('rounds=1'), tmp_path, quiet=True)
  assert not (result.folder / secret.FILE).exists()
  assert (result.folder / 'checkpoints').stat().st_mode & 0o055
  records = read_metrics(result.folder / 'metrics.jsonl')
  assert not any('covered' in x for x in itertools.chain(records, [result.metrics[-1]]))
  assert 'coverage' not in json.loads((result.folder / 'manifest.json').read_text())
