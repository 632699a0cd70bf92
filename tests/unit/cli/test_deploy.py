"""The commands of a deployment say in one line why not, and need no engine for that."""

import subprocess
import sys

import pytest
from reference import kits

from fedjax_mem.cli.main import main


@pytest.fixture
def folder(tmp_path):
  kits.make(tmp_path / 'kits')
  return tmp_path / 'kits'


def refused(capsys, *command):
  assert main(['deploy', *map(str, command)]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and err.startswith('fedjax-mem: error: ')
  return err


def test_the_server_shows_and_revokes(capsys, folder):
  assert main(['deploy', 'revoke', 'b', '--kit', str(folder / 'server')]) == 0
  assert main(['deploy', 'status', '--kit', str(folder / 'server')]) == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0] == (
    'b is revoked from the next round on; the server does not run, and will not admit it'
  )
  assert out[1:3] == ['server: not running, localhost:18002', 'client 0 a: not known']
  assert out[3].startswith('client 1 b: revoked at ')


@pytest.mark.parametrize('command', [('revoke', 'b'), ('status',)])
def test_a_client_may_not(capsys, folder, command):
  said = refused(capsys, *command, '--kit', folder / 'a')
  assert "kit must be that of a server, got the kit of client 'a'" in said


def test_an_unknown_client_is_named(capsys, folder):
  said = refused(capsys, 'revoke', 'z', '--kit', folder / 'server')
  assert "NAME must be one of the clients a, b, got 'z'" in said


def test_keys_are_not_made_over_others(capsys, folder):
  said = refused(capsys, 'keys', folder, '--clients', 'a,b')
  assert 'DIR must be a new or empty folder' in said


def test_a_missing_extra_is_named(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  said = refused(capsys, 'keys', tmp_path / 'kits', '--clients', 'a')
  assert "deploy needs the extra: pip install 'fedjax_mem[deploy]'" in said
  assert not (tmp_path / 'kits').exists()


@pytest.mark.slow
def test_without_deployment_the_engine_is_not_imported():
  code = (
    'import sys; from fedjax_mem.cli.main import main\n'
    'try:\n  main(["deploy", "--help"])\nexcept SystemExit:\n  pass\n'
    'import fedjax_mem\n'
    'assert not [x for x in sys.modules if x.startswith(("nvflare", "fedjax_mem.deploy"))]'
  )
  subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)
