"""The command of the server's machine: what it checks before an engine is started."""

import json

import pytest
from reference import deployed
from reference.deployed import CENTRAL, LOCAL, SEEDED

from fedjax_mem.deploy import driving
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.runner import folder as folders

BAD = {
  'clients': (('data.num_clients=4',), 'data.num_clients must be 3, the clients that have kits'),
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
