"""The envelopes: what is not of this turn, whole and signed by its sender is not read at all."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem.deploy import messages
from fedjax_mem.deploy.messages import (
  MAGIC,
  SERVER,
  Header,
  Inbox,
  Unfit,
  parse,
  seal,
  size,
  verify,
)

KEYS = {name: Ed25519PrivateKey.generate() for name in (SERVER, 'ann', 'bob')}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
RUN, TURN, BODY = '0a', 'f' * 32, b'a body of some bytes'
ASKED = {name: Header(RUN, 3, TURN, 'train', SERVER, name) for name in ('ann', 'bob')}
ANSWER = ASKED['ann'].reply('update')
START = len(MAGIC) + 4  # bytes before the header


def inbox(limit=None):
  made = Inbox(RUN, {name: PUBLIC[name] for name in ('ann', 'bob')})
  made.expect(ASKED, size(ANSWER, len(BODY)) if limit is None else limit)
  return made


def sealed(key='ann', body=BODY, **changes):
  return seal(KEYS[key], dataclasses.replace(ANSWER, **changes), body)


def refused(data, name='ann', box=None):
  """Returns why an inbox refuses an answer, which it counts and notes by name."""
  box = inbox() if box is None else box
  before = sum(box.refused.values())
  assert box.take(name, data) is None
  assert sum(box.refused.values()) == before + 1
  who, words = box.notes[-1]
  assert who == name and box.refused[words.partition(':')[0]] >= 1
  return words.partition(':')[0]


def test_an_envelope_comes_back_whole():
  data = sealed()
  envelope = parse(data)
  verify(envelope, PUBLIC['ann'])
  assert (envelope.header, envelope.body) == (ANSWER, BODY)
  assert len(data) == size(ANSWER, len(BODY))
  assert inbox().take('ann', data) == envelope


def test_the_answer_of_a_message_goes_back_to_its_sender():
  assert (ANSWER.sender, ANSWER.to, ANSWER.kind) == ('ann', SERVER, 'update')
  assert (ANSWER.run, ANSWER.round, ANSWER.turn) == (RUN, 3, TURN)


@pytest.mark.parametrize('bit', [0, 7])
def test_a_change_of_any_one_bit_is_refused(bit):
  data = sealed()
  for i in range(len(data)):
    changed = data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :]
    why = refused(changed)
    at = 'magic' if i < START else 'header' if i < START + len(json.dumps(ANSWER.__dict__)) else ''
    assert why in (('malformed', 'unknown', 'altered') if at else ('altered',)), (i, why)


def test_every_prefix_and_whatever_is_longer_is_refused():
  data = sealed()
  for i in range(len(data)):
    assert refused(data[:i]) in ('malformed', 'altered')
  assert refused(data + b'0') == 'altered'


def test_one_that_is_not_signed_is_refused():
  assert refused(sealed()[:-64] + bytes(64)) == 'unsigned'
  assert refused(sealed('bob')) == 'altered'  # by another key
  assert refused(sealed(SERVER)) == 'altered'


def test_a_signature_of_the_same_bytes_for_another_purpose_is_refused():
  data = sealed()
  said = data[:-64]
  assert refused(said + KEYS['ann'].sign(said)) == 'altered'


def test_a_client_speaks_through_its_own_connection_only():
  assert refused(sealed('bob', sender='bob'), 'ann') == 'unknown'
  assert refused(sealed('ann', sender='bob'), 'ann') == 'unknown'
  assert refused(sealed('ann', sender='eve'), 'eve') == 'unknown'
  assert refused(sealed(SERVER, sender=SERVER), SERVER) == 'unknown'


@pytest.mark.parametrize(
  'changes', [{'run': '0b'}, {'round': 2}, {'round': 4}, {'round': -1}, {'turn': 'e' * 32}]
)
def test_one_of_another_exchange_is_stale(changes):
  assert refused(sealed(**changes)) == 'stale'


def test_one_that_nobody_has_asked_for_is_stale():
  box = inbox()
  box.expect({'bob': ASKED['bob']}, 10**4)
  assert refused(sealed(), box=box) == 'stale'


def test_the_second_answer_of_a_client_is_refused_and_another_client_is_not():
  box = inbox()
  assert box.take('ann', sealed()) is not None
  assert refused(sealed(), box=box) == 'replayed'
  assert refused(sealed(body=b'other'), box=box) == 'replayed'
  assert box.take('bob', seal(KEYS['bob'], ASKED['bob'].reply('update'), BODY)) is not None


def test_an_answer_for_another_is_refused():
  assert refused(sealed(to='bob')) == 'replayed'


def test_a_refused_answer_does_not_use_up_the_turn_of_its_client():
  box = inbox()
  refused(sealed('bob'), box=box)
  assert box.take('ann', sealed()) is not None


def test_an_answer_of_an_earlier_exchange_is_refused_in_the_next():
  box, late = inbox(), sealed()
  box.take('ann', late)
  box.expect({n: dataclasses.replace(x, turn='d' * 32) for n, x in ASKED.items()}, 10**4)
  assert box.notes == [] and refused(late, box=box) == 'stale'


def test_more_than_the_plan_has_by_a_tenth_is_refused_before_it_is_parsed(monkeypatch):
  limit = 1000
  most = int(1.1 * limit)
  box = inbox(limit)
  assert box.take('ann', sealed(body=bytes(most - size(ANSWER, 0)))) is not None
  monkeypatch.setattr(messages, 'parse', lambda data: pytest.fail('it was parsed'))
  assert refused(bytes(most + 1), box=inbox(limit)) == 'oversized'


def test_no_signature_is_verified_with_the_key_that_a_message_names(monkeypatch):
  seen = []
  monkeypatch.setattr(messages, 'verify', lambda envelope, public: seen.append(public))
  inbox().take('ann', sealed())
  assert seen == [PUBLIC['ann']]


@pytest.mark.parametrize(
  'header',
  [
    b'',
    b'null',
    b'[]',
    b'{}',
    b'[' * 2000,
    b'\xff\xfe',
    json.dumps({**dataclasses.asdict(ANSWER), 'more': 1}).encode(),
    json.dumps({**dataclasses.asdict(ANSWER), 'round': True}).encode(),
    json.dumps({**dataclasses.asdict(ANSWER), 'round': 3.0}).encode(),
    json.dumps({**dataclasses.asdict(ANSWER), 'sender': ['ann']}).encode(),
  ],
)
def test_a_header_that_is_none_is_malformed(header):
  said = MAGIC + len(header).to_bytes(4, 'little') + header + BODY
  assert (
    refused(said + KEYS['ann'].sign(b'fedjax_mem deployment envelope 1\0' + said), box=inbox(10**4))
    == 'malformed'
  )


def test_a_header_longer_than_any_is_malformed():
  with pytest.raises(Unfit, match='malformed'):
    parse(MAGIC + (4097).to_bytes(4, 'little') + bytes(5000))


def test_a_body_that_is_none_of_its_kind_is_counted_too():
  box = inbox()
  box.unsound('ann', 'of no kind')
  assert box.refused['malformed'] == 1 and box.notes == [('ann', 'malformed: of no kind')]
