"""A job is two classes of ours and one payload."""

import json

import pytest
from reference import kits

from fedjax_mem.deploy import engine, jobs
from fedjax_mem.deploy.kit import Kit


def test_a_job_names_our_two_classes_and_carries_the_payload(tmp_path):
  job = jobs.make(tmp_path / 'job', b'payload', 3)
  config = job / 'app' / 'config'
  assert {p.name for p in config.iterdir()} == {
    *('config_fed_server.json', 'config_fed_client.json', 'job.bin'),
  }
  assert (config / 'job.bin').read_bytes() == b'payload'
  server = json.loads((config / 'config_fed_server.json').read_text())
  client = json.loads((config / 'config_fed_client.json').read_text())
  named = [server['workflows'][0]['path'], client['executors'][0]['executor']['path']]
  assert tuple(named) == engine.CLASSES
  assert (server, client) == jobs.configs(0.02)
  assert json.loads((job / 'meta.json').read_text())['min_clients'] == 1


def test_more_clients_ask_less_often(tmp_path):
  def interval(clients):
    job = jobs.make(tmp_path / f'job-{clients}', b'', clients)
    server = json.loads((job / 'app' / 'config' / 'config_fed_server.json').read_text())
    return server['server']['task_request_interval']

  assert [interval(n) for n in (1, 4, 20, 100)] == [0.02, 0.02, 0.1, 0.5]


def test_a_client_is_no_driver(tmp_path):
  kits.make(tmp_path)
  with pytest.raises(ValueError, match="must be that of the server, got the kit of client 'a'"):
    jobs.Driver(Kit.open(tmp_path / 'a', 'client'), tmp_path)
