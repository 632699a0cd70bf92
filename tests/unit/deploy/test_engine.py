"""What the engine is told: all on this machine, no code of others, nothing to the other side."""

import json
import stat

import pytest
from reference import kits

from fedjax_mem.deploy import engine


@pytest.fixture
def laid_out(tmp_path):
  """Returns a function that lays out the engine's folder of a role."""
  kits.make(tmp_path / 'kits')

  def lay_out(role, **more):
    name = 'server' if role == 'server' else 'a'
    startup = tmp_path / 'kits' / name / 'startup'
    (startup / f'fed_{role}.json').write_text('{"of": "the kit"}')
    folder = tmp_path / 'engine'
    engine.lay_out(startup, folder, role, ('a', 'b'), **more)
    return folder, json.loads((folder / 'local' / 'resources.json').read_text())

  return lay_out


@pytest.mark.parametrize('role', ['server', 'client'])
def test_no_code_of_others_runs_and_only_the_driver_has_rights(laid_out, role):
  folder, resources = laid_out(role)
  assert resources['class_list_enforcement_mode'] == 'enforce'
  assert set(resources['class_allow_list']) == {
    *engine.CLASSES, 'nvflare.app_common.logging.job_log_streamer.JobLogStreamer'
  }  # fmt: skip
  assert resources['app_validator'] == {'path': engine.VALIDATOR, 'args': {'role': role}}
  rights = json.loads((folder / 'local' / 'authorization.json').read_text())['permissions']
  assert set(rights) == {engine.ROLE}
  assert {k for k, v in rights[engine.ROLE].items() if v == 'none'} == {
    *('clone_job', 'download_job', 'shell_commands', 'byoc', 'server-predeployed-flwr'),
  }


@pytest.mark.parametrize('role', ['server', 'client'])
def test_keys_stay_in_the_kit(laid_out, role):
  folder, _ = laid_out(role)
  for name in (f'{role}.key', f'{role}.crt', 'rootCA.pem'):
    assert (folder / 'startup' / name).is_symlink()
  settings = folder / 'startup' / f'fed_{role}.json'
  assert not settings.is_symlink() and json.loads(settings.read_text()) == {'of': 'the kit'}
  for path in (folder, folder / 'startup', folder / 'local', settings):
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_clients_log_stays_with_it(laid_out):
  _, resources = laid_out('client')
  assert resources['allow_log_streaming'] is False
  assert not [c for c in resources['components'] if 'log' in c['id']]


def test_the_server_keeps_all_in_its_folder_and_misses_the_silent(laid_out):
  folder, resources = laid_out('server')
  assert resources['servers'][0]['heart_beat_timeout'] == engine.SILENCE == 10
  text = json.dumps(resources)
  assert '/tmp/nvflare' not in text
  for name in ('jobs', 'snapshots', 'transfer'):
    assert str(folder / name) in text


def test_the_revoked_are_not_admitted_from_the_start(laid_out):
  folder, _ = laid_out('server', revoked={'b': 'today'})
  assert json.loads((folder / 'disabled_clients.json').read_text()) == {'disabled_clients': ['b']}


def test_what_another_start_left_is_not_run_again(laid_out):
  folder, _ = laid_out('server')
  (folder / 'jobs').mkdir()
  (folder / 'jobs' / 'old').touch()
  laid_out('server')
  assert not (folder / 'jobs').exists()


def test_without_the_extra_it_is_named(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"needs the extra: pip install 'fedjax_mem\[deploy\]'"):
    engine.need()
