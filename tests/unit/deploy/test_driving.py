"""The command of the server's machine: what it checks before an engine is started."""

import dataclasses
import json
import types

import pytest
from reference import deployed
from reference.deployed import CENTRAL, LOCAL, SEEDED

from fedjax_mem.deploy import driving
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.runner import folder as folders
from fedjax_mem.runner import loop
from fedjax_mem.runner.folder import RunFolder

BAD = {
  'clients': (('data.num_clients=4',), 'data.num_clients must be 3, the clients that have kits'),
  'held': (('evaluation.clients=0.5',), r'evaluation.clients must be 0 on real machines.*got 0\.5'),
  'tracked': (('tracking.use=["csv"]',), 'tracking.use must be empty on real machines'),
  'seed': ((*CENTRAL, SEEDED), 'noise_seed must be left out on real machines'),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  made = deployed.kits(tmp_path_factory.mktemp('kits'), ('a', 'b', 'c'))
  return Kit.open(made['server'], 'server')


@pytest.mark.parametrize('bad', BAD)
def test_bad_input_is_refused_before_a_folder_is_made(bad, server, tmp_path):
  over, words = BAD[bad]
  config = deployed.experiment(tmp_path, *over)
  with pytest.raises(ValueError, match=words) as raised:
    driving.begin(config, server, tmp_path / 'runs', None, False)
  assert '\n' not in str(raised.value) and not (tmp_path / 'runs').exists()


def test_layers_that_cannot_be_deployed_are_refused_before_a_folder_is_made(server, tmp_path):
  over = "stages=[{use='power_sgd', options={rank=1}}]"
  config = deployed.experiment(tmp_path, over)
  with pytest.raises(ValueError, match='has a code that cannot cross by itself'):
    driving.begin(config, server, tmp_path / 'runs', None, False)
  assert not (tmp_path / 'runs').exists()


def test_a_run_is_opened_again_by_its_own_deployment_until_it_is_finished(server, tmp_path):
  config = deployed.experiment(tmp_path, *LOCAL)
  made = driving.begin(config, server, tmp_path / 'runs', None, False)
  assert list(made.manifest['clients_by_id']) == ['a', 'b', 'c']
  assert driving.reopen(made.path, server, False).path == made.path
  others = deployed.kits(tmp_path, ('a', 'c', 'b'))
  with pytest.raises(ValueError, match='a run of this deployment, got one of a simulation or of'):
    driving.reopen(made.path, Kit.open(others['server'], 'server'), False)
  made.note(status='finished')
  (made.path / 'report.html').touch()
  with pytest.raises(ValueError, match='must be unfinished'):
    driving.reopen(made.path, server, False)
  simulated = folders.create(config, tmp_path / 'simulated')
  with pytest.raises(ValueError, match='got one of a simulation'):
    driving.reopen(simulated.path, server, False)
  said = json.loads((made.path / 'manifest.json').read_text())
  assert said['deployed'] is True


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  folder = tmp_path_factory.mktemp('begun')
  return deployed.Deployment(folder, deployed.experiment(folder))


def again(begun, kit=None):
  return driving.reopen(begun.folder.path, kit or begun.server, False)


@pytest.mark.slow
def test_a_run_is_marked_before_anything_else_is_noted(begun, tmp_path, monkeypatch):
  def killed(self, **facts):
    raise SystemExit

  monkeypatch.setattr(RunFolder, 'note', killed)
  with pytest.raises(SystemExit):
    driving.begin(begun.config, begun.server, tmp_path, None, False)
  (path,) = (x for x in tmp_path.iterdir() if x.name.startswith('deployed-'))
  said = json.loads((path / 'manifest.json').read_text())
  assert said['deployed'] is True and said['clients_by_id'] == ['a', 'b', 'c']
  with pytest.raises(ValueError, match=f'`fedjax-mem deploy server {path} --kit DIR`'):
    loop.resume(path)


@pytest.mark.slow
def test_an_unfinished_run_goes_on(begun):
  assert again(begun).path == begun.folder.path


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_configuration(begun):
  file = begun.folder.path / 'config.toml'
  text = file.read_text()
  try:
    file.write_text(text.replace('learning_rate = 0.1', 'learning_rate = 0.2', 1))
    with pytest.raises(ValueError, match='what the run began with'):
      again(begun)
  finally:
    file.write_text(text)


@pytest.mark.slow
def test_a_run_of_other_clients_or_a_simulation_does_not_go_on(begun):
  other = dataclasses.replace(begun.server, clients=('a', 'c', 'b'))
  with pytest.raises(ValueError, match='run of this deployment'):
    again(begun, other)
  begun.folder.note(deployed=False)
  try:
    with pytest.raises(ValueError, match='got one of a simulation'):
      again(begun)
  finally:
    begun.folder.note(deployed=True)


def jobs(tmp_path, here):
  """Returns the driver's watch of jobs with clients `here`, and its places."""
  made = object.__new__(driving._Jobs)
  made._places, made._apart = driving.Place.within(tmp_path), None
  made._here = lambda driver: set(here)
  return made


def test_a_job_is_ended_for_a_client_that_it_cannot_reach_for_some_seconds(tmp_path, monkeypatch):
  clock, here = [0.0], {'a', 'b'}
  monkeypatch.setattr(driving, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))
  watched = jobs(tmp_path, here)

  def look(joined, at):
    clock[0] = at
    watched._places.joined.write_text(json.dumps(joined))
    watched._rejoined(None)
    return watched._places.rejoin.exists()

  watched._rejoined(None)  # the job has not said yet whom it reaches
  assert not watched._places.rejoin.exists()
  assert not look(['a', 'b'], 0.0)
  assert not look(['a'], 1.0)
  assert not look(['a', 'b'], 3.0)  # it was silent for a while, and is in the job
  assert not look(['a'], 5.0)
  assert not look(['a'], 7.0)
  assert look(['a'], 9.0)
