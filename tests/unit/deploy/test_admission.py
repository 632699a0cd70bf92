"""A machine runs no job but ours, whoever of the deployment has signed it."""

import json

import pytest
from reference import kits

from fedjax_mem.deploy import engine, jobs

pytestmark = pytest.mark.slow  # they need NVIDIA FLARE


@pytest.fixture(scope='module')
def authority():
  return kits.Authority()


@pytest.fixture
def app(authority, tmp_path):
  """The app of a job, with the driver as its signer; the engine itself verifies signatures."""
  made = jobs.make(tmp_path / 'job', b'payload', 3) / 'app'
  sign(made, authority, engine.DRIVER, engine.ROLE)
  return made


def sign(app, authority, name, role):
  authority.issue(app.parent / 'signer', 'client', name, role=role)
  for folder in (app, app / 'config'):
    (folder / '.__nvfl_sig.json').write_text('{}')
    certificate = (app.parent / 'signer' / 'client.crt').read_bytes()
    (folder / '.__nvfl_submitter.crt').write_bytes(certificate)


def validated(app, role='server'):
  from fedjax_mem.deploy.admission import OursAlone

  line, facts = OursAlone(role).validate(str(app))
  assert facts == {} and '\n' not in line
  return line


def test_a_job_of_ours_is_let_in(app):
  assert validated(app) == ''


@pytest.mark.parametrize('name', ['config/evil.py', 'custom/evil.py', 'config/config_x.json'])
def test_a_file_more_is_refused(app, name):
  (app / name).parent.mkdir(exist_ok=True)
  (app / name).touch()
  assert f'got {name}' in validated(app)


@pytest.mark.parametrize('name', ['config/job.bin', 'config/config_fed_client.json'])
def test_a_file_less_is_refused(app, name):
  (app / name).unlink()
  assert f'got {name}' in validated(app)


def test_a_link_in_place_of_a_folder_is_refused(app):
  (app / 'more').symlink_to('/tmp', target_is_directory=True)
  assert 'got more' in validated(app)


@pytest.mark.parametrize('name', ['.__nvfl_sig.json', 'config/.__nvfl_submitter.crt'])
def test_an_unsigned_job_is_refused(app, name):
  (app / name).unlink()
  assert 'must be signed by the driver' in validated(app)


@pytest.mark.parametrize(
  ('name', 'role'),
  [('a', None), ('a', engine.ROLE), (engine.DRIVER, None), (engine.DRIVER, 'lead')],
)
def test_a_job_that_another_has_signed_is_refused(app, authority, name, role):
  sign(app, authority, name, role)
  assert f"only {engine.DRIVER} may submit jobs and ask the server, got ['{name}']" in validated(
    app
  )


@pytest.mark.parametrize('file', ['config_fed_server.json', 'config_fed_client.json'])
def test_a_setting_more_is_refused(app, file):
  path = app / 'config' / file
  path.write_text(json.dumps(json.loads(path.read_text()) | {'decomposer_module': 'os'}))
  assert 'a job must name fedjax_mem.deploy.flare.Rounds' in validated(app)


@pytest.mark.parametrize('interval', [None, '0.02', [0.02]])
def test_an_interval_that_is_no_number_is_refused(app, interval):
  path = app / 'config' / 'config_fed_server.json'
  content = json.loads(path.read_text())
  content['server'] = {'task_request_interval': interval}
  path.write_text(json.dumps(content))
  assert 'a job must name' in validated(app)


def test_a_client_is_told_what_it_refused(app, tmp_path, monkeypatch):
  (app / 'config' / 'job.bin').unlink()
  place = tmp_path / 'place.json'
  place.write_text(json.dumps({'outcome': str(tmp_path / 'outcome.json')}))
  monkeypatch.setenv('FEDJAX_MEM_DEPLOY', str(place))
  line = validated(app, 'client')
  assert json.loads((tmp_path / 'outcome.json').read_text()) == {'status': 'refused', 'line': line}
