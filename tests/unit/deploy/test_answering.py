"""A client's side of a job: what it refuses of a server, and what it answers once."""

import dataclasses
import json
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from reference import deployed
from reference.deployed import LOCAL, SEEDED, Bare, Deployment, Wire

from fedjax_mem.deploy import answering, job, messages
from fedjax_mem.deploy.messages import SERVER, Header, Refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns (deployment under local noise, its client a, the server's first task for it)."""
  folder = tmp_path_factory.mktemp('answering')
  deployment = Deployment(folder, deployed.experiment(folder, *LOCAL))
  wire = Wire(deployment.clients('a'))
  tasks = {}
  wire.before = tasks.update
  wire.change = lambda *_: None
  bare = Bare(deployment, wire, least=0)
  whole, wire.clients['a'] = wire.clients['a'], lambda blob: None
  bare.run()
  return deployment, whole, messages.parse(tasks['a'])


@pytest.fixture
def client(made):
  deployed.unasked([made[1]])
  return made[1]


def sent(made, key=None, body=None, **changes):
  """Returns a message of the server to client a: its first task, with another turn."""
  deployment, _, task = made
  header = dataclasses.replace(task.header, **{'turn': secrets.token_hex(16)} | changes)
  sign = deployment.server.sign if key is None else key
  return messages.seal(sign, header, task.body if body is None else body)


def answered(client, blob):
  return messages.parse(client(blob))


def test_a_message_is_answered_signed_to_its_turn(made, client):
  deployment, _, task = made
  answer = answered(client, sent(made, turn='ab' * 16))
  messages.verify(answer, deployment.server.public['a'])
  assert answer.header == Header(task.header.run, 0, 'ab' * 16, 'update', 'a', SERVER)


@pytest.mark.parametrize(
  ('why', 'changes'),
  [
    ('altered', {'key': Ed25519PrivateKey.generate()}),
    ('stale', {'run': '0' * 32}),
    ('stale', {'sender': 'b'}),
    ('replayed', {'to': 'b'}),
  ],
)
def test_a_client_refuses_what_its_server_has_not_signed_for_it(why, changes, made, client):
  blob = sent(made, **changes)
  with pytest.raises(Refused, match=f"signed by this deployment's server.*{why}") as raised:
    client(blob)
  assert '\n' not in str(raised.value)
  assert client._memory.answered == -1


def test_a_message_altered_anywhere_or_that_came_before_is_refused(made, client):
  blob = sent(made, kind='unknown')  # is declined, which costs nothing
  for at in (0, 6, 40, 200, len(blob) // 2, len(blob) - 1):
    with pytest.raises(Refused, match="signed by this deployment's server"):
      client(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :])
  assert answered(client, blob).header.kind == 'declined'
  with pytest.raises(Refused, match='replayed'):
    client(blob)


def test_under_local_noise_a_round_is_answered_once_also_after_a_restart(made, client):
  deployment, _, task = made
  assert answered(client, sent(made)).header.kind == 'update'
  again = answered(client, sent(made))
  assert again.header.kind == 'declined' and b'round 1 was answered before' in again.body
  other = deployment.clients('a')['a']  # from the disk
  assert answered(other, sent(made)).header.kind == 'declined'
  later = np.int32(2).tobytes() + task.body[4:]
  assert answered(other, sent(made, round=2, body=later)).header.kind == 'update'
  assert answered(client, sent(made)).header.kind == 'declined'
  earlier = np.int32(1).tobytes() + task.body[4:]
  declined = answered(other, sent(made, round=1, body=earlier))
  assert declined.header.kind == 'declined'  # though it was never asked for


def test_the_mark_is_on_the_disk_before_the_answer_leaves(made, client):
  noted = []
  body = client._body

  def watched(*args):
    noted.append(json.loads(client._memory._mark.read_text()))
    return body(*args)

  client._body = watched
  try:
    client(sent(made))
  finally:
    client._body = body
  assert noted == [[0, 1]]


@pytest.mark.parametrize('wrong', ['short', 'long', 'another round', 'a round beyond the run'])
def test_a_task_that_is_none_of_the_run_is_not_trained_on(wrong, made, client):
  body, changes = made[2].body, {}
  if wrong == 'short':
    body = body[:-1]
  elif wrong == 'long':
    body += b'0'
  elif wrong == 'another round':
    changes = {'round': 1}
  else:
    changes, body = {'round': 5}, np.int32(5).tobytes() + body[4:]
  answer = answered(client, sent(made, body=body, **changes))
  assert answer.header.kind == 'declined' and client._memory.answered == -1


def test_each_process_of_a_client_draws_its_own_noise(made, client):
  deployment = made[0]
  root = np.asarray(deployment.ready.sim.root)
  first = answered(client, sent(made)).body
  other = deployment.clients('a')['a']
  deployed.unasked([other])
  assert answered(other, sent(made)).body != first
  roots = [np.asarray(x._root).tolist() for x in (client, other)] + [root.tolist()]
  assert len({tuple(x) for x in roots}) == 3
  for x in roots:
    assert np.asarray(x, np.uint32).tobytes() not in made[2].body + first


def test_noise_that_others_can_repeat_needs_the_word_of_each_side(made, tmp_path):
  deployment = made[0]
  seeded = deployed.experiment(tmp_path, *LOCAL, SEEDED)
  with pytest.raises(ValueError, match='noise_seed must be left out on real machines'):
    deployed.driving.begin(seeded, deployment.server, tmp_path, None, False)
  assert [x.name for x in tmp_path.iterdir()] == ['experiment.toml']
  payload = deployment.job(config=seeded)
  with pytest.raises(Refused, match='noise_seed must be left out'):
    answering.open(deployment.place('a'), payload)
  with pytest.raises(Refused, match='noise_seed must be given'):
    answering.open(deployment.place('a', repeatable=True), deployment.payload)


def test_a_job_of_other_clients_is_refused_before_anything_is_built(made, monkeypatch):
  deployment = made[0]
  monkeypatch.setattr(answering.build, 'load_data', lambda *_: pytest.fail('it was built'))
  with pytest.raises(Refused, match='must be for the clients a, b, c of this kit, got a, c, b'):
    answering.open(deployment.place('a'), deployment.job(clients=('a', 'c', 'b')))


def test_a_client_demands_of_a_job_what_its_command_says(made, tmp_path):
  deployment = made[0]
  path = tmp_path / 'pin.toml'
  path.write_text(deployed.EXPERIMENT)
  for changes, words in (
    ({'pin': str(path)}, 'privacy.delta must be left out'),
    ({'require': 'secagg'}, 'under --require secagg'),
    ({'data': str(tmp_path / 'none.npz')}, '--data must be'),
  ):
    with pytest.raises(Refused, match=words) as raised:
      answering.open(deployment.place('a', **changes), deployment.payload)
    assert '\n' not in str(raised.value)
  given = job.read(deployment.payload, deployment.server.public[SERVER])
  with pytest.raises(Refused, match="signed by the server's key"):
    answering.open(deployment.place('a'), job.write(Ed25519PrivateKey.generate(), given))


def test_the_last_word_of_the_server_reaches_the_command(made, client, tmp_path, monkeypatch):
  path = tmp_path / 'outcome.json'
  client(sent(made))
  monkeypatch.setitem(client._place, 'outcome', str(path))
  body = json.dumps({'status': 'finished', 'line': 'done'}).encode()
  assert answered(client, sent(made, kind='end', round=-1, body=body)).header.kind == 'bye'
  said = json.loads(path.read_text())
  assert said['status'] == 'finished'
  assert said['line'].startswith('done; local: ') and '1 round' in said['line']


def test_a_client_counts_its_own_releases(made, client):
  (ledger,) = client._ledgers.values()
  client._memory._mark.write_text(json.dumps([-1, ledger.allowed]))
  answer = answered(client, sent(made))
  assert answer.header.kind == 'declined' and b'the budget is spent' in answer.body
  assert client._memory.answered == -1


def test_a_second_run_needs_the_word_of_the_clients_machine(made):
  deployment = made[0]
  with pytest.raises(Refused, match='another run than the one that this client takes part in'):
    answering.open(deployment.place('a'), deployment.job(run='0b' * 16))
