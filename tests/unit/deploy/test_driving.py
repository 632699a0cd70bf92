"""The folder of a run on real machines: what it says from its start, and which may go on."""

import dataclasses
import json

import pytest
from reference import deployed

from fedjax_mem.deploy import driving
from fedjax_mem.runner import loop
from fedjax_mem.runner.folder import RunFolder


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  folder = tmp_path_factory.mktemp('begun')
  return deployed.Deployment(folder, deployed.experiment(folder))


def again(begun, kit=None):
  return driving.reopen(begun.folder.path, kit or begun.server, False)


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


def test_an_unfinished_run_goes_on(begun):
  assert again(begun).path == begun.folder.path


def test_a_run_does_not_go_on_with_another_configuration(begun):
  file = begun.folder.path / 'config.toml'
  text = file.read_text()
  try:
    file.write_text(text.replace('learning_rate = 0.1', 'learning_rate = 0.2', 1))
    with pytest.raises(ValueError, match='what the run began with'):
      again(begun)
  finally:
    file.write_text(text)


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
