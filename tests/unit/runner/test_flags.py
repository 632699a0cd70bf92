"""Flags of JAX: a run draws the same under any, states those that matter, compares at resume."""

import json

import jax
import numpy as np
import pytest

from fedjax_mem.runner import flags
from fedjax_mem.runner.loop import resume, run

pytestmark = pytest.mark.usefixtures('undrawn')

# Draws of several kinds: cohorts, traces, drop-out, epochs.
DRAWING = (
  'rounds=2',
  'selection.dropout=0.2',
  'selection.availability={use="markov", leave=0.2, join=0.5}',
  'algorithm={name="fedprox", options={mu=0.1, partial_work=0.5}}',
  'client.epochs=2',
)


def under_another_generator():
  return jax.default_prng_impl('rbg')


def unpartitionable():
  return jax.threefry_partitionable(False)


def with_64_bits():
  return jax.enable_x64(True)


@pytest.mark.slow
def test_a_run_is_the_same_under_any_flag(make, tmp_path):
  plain = run(make(*DRAWING), tmp_path / 'plain')
  with under_another_generator(), unpartitionable():
    drawn = run(make(*DRAWING), tmp_path / 'drawn')
  with with_64_bits():
    wide = run(make(*DRAWING), tmp_path / 'wide')
  assert [x.dtype for x in jax.tree.leaves(wide.params)] == [np.float32] * 2
  for other in (drawn, wide):
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(other.params), strict=True):
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    fields = ('clients', 'examples', 'train_loss', 'bytes_up')
    for one, same in zip(plain.metrics, other.metrics, strict=True):
      assert [one[x] for x in fields] == [same[x] for x in fields]
  (folder,) = (tmp_path / 'wide').iterdir()
  (folder / 'report.html').unlink()
  with pytest.raises(ValueError, match='jax_enable_x64 must be True as when the run began'):
    resume(folder)
  with with_64_bits(), jax.default_matmul_precision('highest'):
    resume(folder)
  said = json.loads((folder / 'manifest.json').read_text())
  assert said['flags']['jax_enable_x64'] is True
  (warning,) = said['warnings']
  assert warning.startswith("resumed with jax_default_matmul_precision = 'highest', not None: ")


def test_what_matters_is_stated_and_what_does_not_is_left_out(monkeypatch):
  monkeypatch.setenv(
    'XLA_FLAGS', '--xla_cpu_enable_fast_math=true --xla_force_host_platform_device_count=2 '
    '--xla_dump_to=/tmp/x --xla_allow_excess_precision=false',
  )  # fmt: skip
  with jax.default_matmul_precision('highest'):
    said = flags.stated()
  assert said['XLA_FLAGS'] == '--xla_allow_excess_precision=false --xla_cpu_enable_fast_math=true'
  assert said['jax_default_matmul_precision'] == 'highest' and 'jax_enable_x64' not in said


def test_other_values_are_named_and_64_bits_are_refused(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_b=1 --xla_a=2')
  before = flags.stated()
  assert flags.check(json.loads(json.dumps(before))) == []
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=2 --xla_b=1 --xla_force_host_platform_device_count=3')
  assert flags.check(before) == []
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=3')
  assert flags.check(before) == [
    "resumed with XLA_FLAGS = '--xla_a=3', not '--xla_a=2 --xla_b=1': results may differ from "
    'those of the run without a stop'
  ]
  with with_64_bits(), pytest.raises(ValueError, match='with JAX_ENABLE_X64=0 in the environment'):
    flags.check(before)
