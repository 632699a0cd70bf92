"""What a malicious party tries against the others, beside what the engine and its gate refuse."""

import json
import math
import secrets
import struct
import types
import zlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from reference import deployed, kits
from reference.deployed import LOCAL, MASK, Bare, Deployment, Wire

from fedjax_mem.deploy import answering, joining, messages, processes, rounds, secure
from fedjax_mem.deploy.form import _HEAD
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.messages import Refused
from fedjax_mem.deploy.rounds import TooFew

BY_EXAMPLES = "weighting.name='examples'"
WIRES = {
  'dense': (BY_EXAMPLES,),
  'integers': ("stages=[{use='integers', options={value_range=4.0}}]",),
  'code': ("stages=[{use='quantize', options={bits=4}}]", BY_EXAMPLES),
}


def opened(folder, *overrides):
  """Returns (deployment, rounds of it with all its clients)."""
  deployment = Deployment(folder, deployed.experiment(folder, *overrides))
  return deployment, Bare(deployment, Wire(deployment.clients()))


def sends(deployment, bare, change):
  """Has client b send, signed by its own key, other bodies than it should."""
  sign = Kit.open(deployment.kits['b'], 'client').sign

  def changed(name, blob, answer):
    if name != 'b':
      return answer
    header, body = messages.parse(answer)[:2]
    return messages.seal(sign, header, change(body))

  bare.wire.change = changed


def counting(examples):
  return lambda body: _HEAD.pack(True, examples, _HEAD.unpack_from(body)[2]) + body[_HEAD.size :]


def packed(change):
  """Returns a change of a body's packet, whose checksum is made to fit."""

  def changed(body):
    end = _HEAD.size + _HEAD.unpack_from(body)[2]
    packet = change(bytearray(body[_HEAD.size : end - 4]))
    sealed = bytes(packet) + struct.pack('<I', zlib.crc32(bytes(packet)))
    return body[: _HEAD.size] + sealed + body[end:]

  return changed


def weighing(weight):
  def change(packet):
    packet[7:11] = struct.pack('<f', weight)
    return packet

  return packed(change)


def noise(seed):
  """Returns a change to arbitrary bytes, with the headers of packet and parts left as they are."""
  rng = np.random.default_rng(seed)

  def change(packet):
    at = rng.integers(7, len(packet), 20)
    for place, value in zip(at, rng.integers(0, 256, 20), strict=True):
      packet[place] = value
    return packet

  return packed(change)


@pytest.mark.slow
@pytest.mark.parametrize('kind', WIRES)
def test_no_answer_of_a_client_ends_the_rounds_of_the_others(kind, tmp_path):
  """A count beyond an int32 did, and a weight that no integer holds."""
  deployment, bare = opened(tmp_path, *WIRES[kind])
  first = bare.state
  assert bare.plan.form.kind == kind
  cases = [counting(2**32 - 1), counting(2**31 - 1)]
  cases += [weighing(x) for x in (math.inf, -math.inf, math.nan, 3e38, -1.0)]
  cases += [noise(seed) for seed in range(20)]
  for change in cases:
    bare.state = first
    sends(deployment, bare, change)
    done = bare.run()
    assert done.metrics['clients'] >= 2 and np.isfinite(done.metrics['finite'])
    assert 0 <= done.metrics['examples'] < 2**31
  for change in cases[:3]:
    bare.state = first
    sends(deployment, bare, change)
    done = bare.run()
    assert done.metrics['clients'] == 2 and done.refused == 1


@pytest.mark.slow
def test_two_jobs_of_one_run_at_once_get_one_answer_to_a_round(tmp_path):
  """A server may start several at a client: two answers are twice the noise's cost, or two sums."""
  deployment = Deployment(tmp_path, deployed.experiment(tmp_path, *LOCAL))
  jobs = [deployment.clients('a')['a'] for _ in range(2)]  # both were opened before any answer
  answers = []
  for job in jobs:
    bare = Bare(deployment, Wire({'a': job}), least=0)
    bare.wire.change = lambda name, blob, answer: answers.append(messages.parse(answer))
    bare.run()
  assert [x.header.kind for x in answers] == ['update', 'declined']
  assert b'round 1 was answered before' in answers[1].body


@pytest.mark.slow
def test_two_sessions_of_a_client_never_have_one_name(tmp_path):
  """Whatever the server sends: else what was signed in one round is of use in another."""
  _, bare = opened(tmp_path, *MASK)
  client, named = bare.wire.clients['a'], []
  whole = client._session
  client._session = lambda *x: named.append(whole(*x)[1].name) or whole(*x)
  with pytest.MonkeyPatch.context() as patch:
    same = types.SimpleNamespace(token_hex=secrets.token_hex, token_bytes=bytes)
    patch.setattr(rounds, 'secrets', same)  # the server repeats itself
    bare.run(2)
  assert len(set(named)) == len(named) == 2
  names = {secure.session_name(run, 0, b'x') for run in ('one', 'two')}
  assert len(names | {secure.session_name('one', 1, b'x')}) == 3


@pytest.mark.slow
def test_a_session_that_ends_late_does_not_end_the_next(tmp_path):
  _, bare = opened(tmp_path, *MASK)
  client = bare.wire.clients['a']
  bare.wire.change = lambda name, blob, answer: None  # nobody goes on after the first message
  old = []
  for _ in range(2):
    with pytest.raises(TooFew):
      bare.run()
    old.append(client._sealed)
    bare.state = bare.state._replace(round=bare.state.round + 1)
  assert old[0].party._client is None  # of the round before: erased
  client._expire(old[0].party)
  assert client._sealed is old[1] and old[1].party._client is not None
  client._expire(old[1].party)
  assert client._sealed is None and old[1].party._client is None
  assert not old[1].values.any()


@pytest.mark.slow
def test_a_server_cannot_have_a_session_last_for_ever(tmp_path):
  long = 'deploy.round_timeout=31622400'  # a year, the longest that there is
  _, bare = opened(tmp_path, *MASK, long)
  client = bare.wire.clients['a']
  bare.wire.change = lambda name, blob, answer: None
  with pytest.raises(TooFew):
    bare.run()
  assert client._sealed.timer.interval <= 3600 and client._sealed.timer.is_alive()
  client._forget()


@pytest.mark.slow
def test_a_job_counts_the_clients_that_have_kits(tmp_path):
  """Noise that is shared, and how often a client is drawn, depend on how many there are."""
  deployment = Deployment(tmp_path, deployed.experiment(tmp_path))
  expected = answering.job.read(deployment.payload, deployment.server.public['server']).expected
  more = deployment.job(expected=expected.__class__(**{**vars(expected), 'num_clients': 300}))
  with pytest.raises(Refused, match='the job must count 3 clients, those of this kit, got 300'):
    answering.open(deployment.place('a'), more)


def test_a_job_whose_body_is_none_is_refused_in_one_line(tmp_path):
  key = Ed25519PrivateKey.generate()
  header = messages.Header('run', -1, '0' * 32, 'job', 'server', '*')
  public = key.public_key().public_bytes_raw()
  for body in (b'', b'[]', b'{}', b'\xff', b'[' * 100_000, json.dumps({'version': 3}).encode()):
    with pytest.raises(Refused) as error:
      answering.job.read(messages.seal(key, header, body), public)
    assert len(str(error.value).splitlines()) == 1


def test_a_second_command_with_a_kit_changes_nothing_of_the_first(tmp_path, monkeypatch):
  """Else the server could begin another run with the first one: it is told of one alone."""
  kits.make(tmp_path, ('a', 'b'))
  kit = Kit.open(tmp_path / 'a', 'client')
  kit.work.mkdir()
  monkeypatch.setattr('fedjax_mem.deploy.certificates.probe', lambda *_: None)
  monkeypatch.setattr('fedjax_mem.deploy.engine.need', lambda: None)
  held = (kit.taken, kit.standing, kit.work / 'outcome.json')
  for path in held:
    path.write_text('"run"')
  lock = processes.locked(kit.work)
  try:
    with pytest.raises(ValueError, match='is in use by another process'):
      joining.join(kit, say=lambda line: None)
  finally:
    lock.release()
  assert all(path.exists() for path in held)


def test_what_a_server_says_cannot_write_into_the_terminal(tmp_path):
  outcome = tmp_path / 'outcome.json'
  line = 'the run has ended\x1b]0;x\x07\n\u202elocal: epsilon 0.1'
  outcome.write_text(json.dumps({'status': 'finished', 'line': line}))
  said = joining._told(outcome)
  assert said.isprintable() and said.startswith('the run has ended')
