"""Clusters that others start: what is read of their variables, and a run in one."""

import os
import socket
import subprocess
import sys

import pytest

from fedjax_mem.runner import meeting

# What jax looks at to find a cluster; nothing of it may be left over from this machine's own.
KNOWN = ('OMPI_', 'SLURM_', 'JAX_COORDINATOR', 'KUBERNETES_', 'TPU_', 'MEGASCALE_')
URI = '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  for name in list(os.environ):
    if name.startswith(KNOWN):
      monkeypatch.delenv(name)


def ompi(process, processes, uri=URI, local=None):
  """Returns what Open MPI tells one of its processes."""
  return {
    'OMPI_MCA_orte_hnp_uri': uri,
    'OMPI_COMM_WORLD_SIZE': str(processes),
    'OMPI_COMM_WORLD_RANK': str(process),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(process if local is None else local),
  }


def slurm(process, processes, nodes, local):
  """Returns what Slurm tells one of its processes."""
  return {
    'SLURM_JOB_ID': '8201',
    'SLURM_STEP_NODELIST': nodes,
    'SLURM_NTASKS': str(processes),
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': str(local),
  }


def told(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  return meeting.detected()


@pytest.mark.parametrize('process', [0, 5])
def test_open_mpi(monkeypatch, process):
  # The port is the job's, 1531576320 / 2**12 = 373920, modulo 2**12 in the last 2**12 ports.
  assert told(monkeypatch, ompi(process, 8, local=process % 4)) == {
    'coordinator': f'10.96.0.1:{373920 % 4096 + 65535 - 4096 + 1}',
    'processes': 8,
    'process': process,
    'local': [process % 4],
  }


def test_open_mpi_with_a_port_that_is_asked_for(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_PORT', '4321')
  found = told(monkeypatch, ompi(1, 2))
  assert found['coordinator'] == '10.96.0.1:4321' and found['process'] == 1


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('login7', 'login7'),
    ('a1,b2', 'a1'),
    ('node[007-015],x', 'node007'),
    ('node[03,05-09]', 'node03'),
  ],
)
def test_slurm(monkeypatch, nodes, first):
  assert told(monkeypatch, slurm(3, 4, nodes, 1)) == {
    'coordinator': f'{first}:{8201 % 4096 + 65535 - 4096 + 1}',
    'processes': 4,
    'process': 3,
    'local': [1],
  }


@pytest.mark.parametrize('missing', [None, 'SLURM_LOCALID', 'SLURM_STEP_NODELIST'])
def test_what_is_no_cluster_is_refused(monkeypatch, missing):
  # A job of Slurm without the variables of a step, or of its process.
  variables = {} if missing is None else slurm(0, 2, 'a1', 0)
  variables.pop(missing, None)
  with pytest.raises(ValueError, match=r'--distributed must be used in a cluster that jax knows'):
    told(monkeypatch, variables)


def run(command, **variables):
  return subprocess.Popen(
    [sys.executable, '-m', 'fedjax_mem', *command],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.slow
def test_a_run_under_open_mpis_variables_is_the_launched_one(tmp_path):
  words = ['run', 'quickstart', '--quiet', '--set', 'rounds=3', '--out']
  launched = run(['launch', '--processes', '2', '--devices', '1', *words, str(tmp_path / 'one')])
  said = launched.communicate(timeout=300)[0]
  assert launched.returncode == 0, said
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = str(probe.getsockname()[1])
  uri = '1531576320.0;tcp://127.0.0.1:34911'
  both = [
    run(
      [*words, str(tmp_path / 'two'), '--distributed'],
      **ompi(process, 2, uri),
      JAX_COORDINATOR_PORT=port,
    )
    for process in (0, 1)
  ]
  try:
    said = [x.communicate(timeout=300)[0] for x in both]
  finally:
    for x in both:
      x.kill()
  assert [x.returncode for x in both] == [0, 0], said
  one, two = (
    [x.read_bytes() for x in sorted((tmp_path / name).glob('*/params.safetensors'))]
    for name in ('one', 'two')
  )
  assert len(one) == 1 and one == two
