"""Processes with noise that are killed at every boundary of a segment: nothing is uncounted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reference.boundaries import BOUNDARIES, published
from reference.experiments import only

from fedjax_mem.report.tracker import read_metrics

HERE = Path(__file__).parents[1]
TEXT = """
version = 1
name = 'charged'
rounds = 11
[data]
name = 'digits'
num_clients = 20
[model]
name = 'logistic'
[client]
batch_size = 80
[selection]
name = 'poisson'
cohort_size = 5
[weighting]
name = 'equal'
options = { divisor = 5 }
[[stages]]
use = 'local'
options = { l2_clip_norm = 0.5, noise_multiplier = 9.0 }
[[stages]]
use = 'central'
options = { l2_clip_norm = 50.0, noise_multiplier = 2.0 }
[privacy]
delta = 1e-3
[evaluation]
every = 100
[execution]
devices = 1
max_segment_rounds = 2
checkpoint_every_seconds = 1000
"""
# Runs or resumes, and kills itself at a boundary of the first segment beyond a number of rounds.
PROGRAM = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
import pytest
from reference.boundaries import dies_at
from fedjax_mem.cli import main as cli
if sys.argv[4] == 'run':  # a resumed run reads the secret root of the run
  from fedjax_mem.core import keys
  fresh = keys.fresh_root()
  fresh[:] = 1, 2
  keys.fresh_root = lambda: fresh
if sys.argv[2]:
  kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
  dies_at(pytest.MonkeyPatch(), sys.argv[2], int(sys.argv[3]), kill)
sys.exit(cli.main(sys.argv[4:]))
"""
BOOKS = ('ledger.json', 'ledger-local.json')


def begin(boundary, round, *words):
  """Returns a process that runs the command with these words and dies at the boundary."""
  command = [sys.executable, '-c', PROGRAM, HERE, boundary, round, *words]
  return subprocess.Popen(
    [str(x) for x in command], cwd=HERE.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip


@pytest.mark.slow
def test_what_a_killed_process_has_published_its_ledgers_state(tmp_path, state_of):
  file = tmp_path / 'charged.toml'
  file.write_text(TEXT)
  whole = begin('', 0, 'run', file, '--out', tmp_path / 'whole', '--quiet')
  words = ('run', file, '--out', tmp_path / 'killed', '--quiet')
  for number, boundary in enumerate(BOUNDARIES):
    process = begin(boundary, 1 + 2 * number, *words)
    _, err = process.communicate()
    assert process.returncode == -9, (boundary, err)
    folder = only(tmp_path / 'killed')
    books = [json.loads((folder / name).read_text()) for name in BOOKS]
    rounds, epsilon = published(folder)
    assert all(x['charged'] >= rounds for x in books), boundary
    assert books[0]['guarantee']['epsilon'] >= epsilon > 0, boundary
    words = ('resume', folder, '--quiet')
  process = begin('', 0, *words)
  assert process.wait() == 0, process.stderr.read()
  assert whole.wait() == 0, whole.stderr.read()
  reference = only(tmp_path / 'whole')
  for name in BOOKS:
    assert (folder / name).read_bytes() == (reference / name).read_bytes()
  strip = lambda r: json.dumps({k: x for k, x in r.items() if k != 'seconds'})
  a, b = ([strip(r) for r in read_metrics(x / 'metrics.jsonl')] for x in (folder, reference))
  assert a == b and len(a) == 11
  a, b = state_of(folder), state_of(reference)
  assert {k: x.tobytes() for k, x in a.items()} == {k: x.tobytes() for k, x in b.items()}
