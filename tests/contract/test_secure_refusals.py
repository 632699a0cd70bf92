"""Every message and request that must be refused, by the server and by clients, in every round."""

import numpy as np
import pytest
from reference.secure_parties import Parties, body

from fedjax_mem.secagg import messages, primitives, protocol
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind

MODES = ['semi_honest', 'active']


def rounds(mode):
  return protocol.rounds(Parties(mode).session)


EACH_ROUND = [(mode, kind) for mode in MODES for kind in rounds(mode)]


@pytest.mark.parametrize(('mode', 'kind'), EACH_ROUND)
def test_the_server_refuses_what_is_not_a_clients_message(mode, kind):
  parties = Parties(mode, 4, 3)
  old = [m for _ in range(rounds(mode).index(kind)) for m in parties.step().values()]
  good = {i: parties.answer(i) for i in range(4)}
  other = Parties(mode, 4, 3)
  foreign = [m for _ in range(rounds(mode).index(kind)) for m in other.step().values()]
  foreign += [other.answer(i) for i in range(4)]
  server = parties.server
  server.receive(0, good[0])
  refused = [
    *[(i, m) for m in old for i in range(4)],  # replayed, or of a wrong round
    *[(i, m) for m in foreign for i in range(4)],  # of another session
    (0, good[0]),  # twice
    (2, good[1]),  # a client that lies about its id
    (4, good[1]),
    (-1, good[1]),
    ('1', good[1]),
    (1, good[1][:-1]),
    (1, good[1] + b'\0'),
    (1, good[1] + bytes(100_000)),
    (1, good[1][:20]),
    (1, b''),
    (1, parties.inbox[1] or b'x'),  # the server's own
    (1, bytearray(good[1])),
  ]
  refused += [(1, flip(good[1], 8 * p)) for p in range(0, len(good[1]), 3)]
  for sender, message in refused:
    with pytest.raises(ProtocolError):
      server.receive(sender, message)
  for i in (1, 2, 3):
    server.receive(i, good[i])
  parties.inbox = server.close_round()
  parties.until(None)
  np.testing.assert_array_equal(server.total(), parties.expected())


@pytest.mark.parametrize(('mode', 'kind'), [p for p in EACH_ROUND if p[1] != Kind.ADVERTISE])
def test_a_client_refuses_what_is_not_the_servers_message(mode, kind):
  parties = Parties(mode, 4, 3).until(kind)
  good = parties.inbox[1]
  previous = Parties(mode, 4, 3).until(kind)
  refused = [parties.inbox[2], previous.inbox[1], good[:-1], good + b'\0', b'', good[:30]]
  refused += [flip(good, 8 * p) for p in range(0, len(good), 3)]
  refused += [parties.from_server(k, 1, body(good, parties.session, False)) for k in Kind]
  refused.remove(good)
  for message in refused:
    with pytest.raises(ProtocolError):
      parties.answer(1, message)
  parties.step()
  parties.until(None)
  np.testing.assert_array_equal(parties.server.total(), parties.expected())


def flip(message, bit):
  """Returns the message with one bit flipped."""
  changed = bytearray(message)
  changed[bit // 8] ^= 1 << bit % 8
  return bytes(changed)


@pytest.mark.parametrize('mode', MODES)
def test_a_client_answers_once_and_in_order(mode):
  parties = Parties(mode, 4, 3)
  client = parties.clients[1]
  calls = {
    Kind.ADVERTISE: lambda m: client.advertise_keys(),
    Kind.SHARES: client.share_keys,
    Kind.MASKED: lambda m: client.mask(m, parties.values[1]),
    Kind.CHECK: client.check,
    Kind.UNMASK: client.unmask,
  }
  for kind in rounds(mode):
    message = parties.inbox[1]
    for other, call in calls.items():
      if other != kind:
        wrong = 'active' if other == Kind.CHECK and mode != 'active' else 'turn'
        with pytest.raises(ProtocolError, match=wrong):
          call(message)
    parties.step()
    with pytest.raises(ProtocolError, match='turn'):
      calls[kind](message)


@pytest.mark.parametrize('mode', MODES)
def test_a_request_for_both_secrets_is_refused(mode):
  parties = Parties(mode, 4, 3).until(Kind.UNMASK, {Kind.MASKED: [3]})
  signed = body(parties.inbox[1], parties.session, False)[8 + 4 * 4 :]
  for survivors, dropped in (([0, 1, 2], [2, 3]), ([0, 1, 2, 3], [3]), ([0, 1, 2], [0, 1, 2, 3])):
    text = messages.request(survivors, dropped, signed)
    with pytest.raises(ProtocolError, match='both secrets'):
      parties.clients[1].unmask(parties.from_server(Kind.REQUEST, 1, text))
  parties.until(None)
  np.testing.assert_array_equal(parties.server.total(), parties.expected())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
  ('survivors', 'dropped', 'problem'),
  [
    ([0, 1], [2, 3], 'survivors must be'),  # too few
    ([0, 2, 3], [1], 'include the client'),
    ([0, 1, 2], [], 'for all'),
    ([0, 1, 1], [2, 3], 'ascending'),
    ([2, 1, 0], [3], 'ascending'),
    ([0, 1, 2, 9], [3], 'known'),
    ([0, 1, 2], [3, 4], 'known'),
  ],
)
def test_a_request_of_another_shape_is_refused(mode, survivors, dropped, problem):
  parties = Parties(mode, 4, 3).until(Kind.UNMASK)
  message = parties.from_server(Kind.REQUEST, 1, messages.request(survivors, dropped, b''))
  with pytest.raises(ProtocolError, match=problem):
    parties.clients[1].unmask(message)


@pytest.mark.parametrize('mode', MODES)
def test_no_second_set_of_survivors(mode):
  """What would unmask one client: the sums with it and without it."""
  parties = Parties(mode, 4, 3).until(Kind.UNMASK)
  parties.clients[1].unmask(parties.inbox[1])
  text = messages.request([0, 1, 2], [3], b'')
  for message in (parties.inbox[1], parties.from_server(Kind.REQUEST, 1, text)):
    with pytest.raises(ProtocolError, match='turn'):
      parties.clients[1].unmask(message)


def test_survivors_must_be_those_that_t_clients_signed():
  parties = Parties('active', 4, 3).until(Kind.UNMASK)
  text = body(parties.inbox[1], parties.session, False)
  signed = text[8 + 4 * 4 :]
  record = messages.SIGNATURE_RECORD.itemsize
  assert len(signed) == 4 * record
  forged = signed[:4] + bytes(64) + signed[record:]
  swapped = signed[:4] + signed[record + 4 : 2 * record] + signed[record:]
  twice = signed[:record] * 3
  everyone = [0, 1, 2, 3]
  for survivors, dropped, signatures, problem in (
    ([0, 1, 2], [3], signed, 'this client signed'),
    (everyone, [], signed[: 2 * record], 'signatures of the survivors'),
    (everyone, [], b'', 'signatures of the survivors'),
    (everyone, [], forged, 'signed by client 0'),
    (everyone, [], swapped, 'signed by client 0'),
    (everyone, [], twice, 'ascending'),
  ):
    message = parties.from_server(Kind.REQUEST, 1, messages.request(survivors, dropped, signatures))
    with pytest.raises(ProtocolError, match=problem):
      parties.clients[1].unmask(message)
  parties.until(None)


@pytest.mark.parametrize(
  ('survivors', 'problem'),
  [
    ([0, 2, 3], 'include the client'),
    ([0, 1], 'survivors must be 3'),
    ([0, 1, 9], 'known'),
    ([1, 0, 2], 'ascending'),
    ([0, 1, 1, 2], 'ascending'),
  ],
)
def test_a_client_signs_no_survivors_that_cannot_be(survivors, problem):
  parties = Parties('active', 4, 3).until(Kind.CHECK)
  message = parties.from_server(Kind.SURVIVORS, 1, messages.id_list(survivors))
  with pytest.raises(ProtocolError, match=problem):
    parties.clients[1].check(message)
  parties.until(None)


def test_clients_told_different_survivors_do_not_unmask():
  """A server that splits the clients gets no t signatures under one set."""
  parties = Parties('active', 4, 3).until(Kind.CHECK)
  signatures = {}
  for i, told in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 2, 3]), (3, [0, 2, 3])):
    message = parties.from_server(Kind.SURVIVORS, i, messages.id_list(told))
    signatures[i] = parties.clients[i].check(message)[-64:]
  signed = b''.join(messages.id_list([i]) + signatures[i] for i in (0, 1, 2))
  text = messages.request([0, 1, 2], [3], signed)
  with pytest.raises(ProtocolError, match='signed by client 2'):
    parties.clients[0].unmask(parties.from_server(Kind.REQUEST, 0, text))


@pytest.mark.parametrize('mode', MODES)
def test_keys_are_checked_by_the_server(mode):
  parties = Parties(mode, 4, 3)
  first = parties.answer(0)
  parties.server.receive(0, first)
  fresh = [primitives.Pair().public for _ in range(2)]
  stolen = body(first, parties.session, True)[:32]
  wrong = [fresh[0] * 2, fresh[0] + bytes(32), bytes(32) + fresh[0], stolen + fresh[0]]
  wrong += [fresh[0] + stolen, fresh[0], fresh[0] + b'\xff' * 32]
  for keys in wrong:
    with pytest.raises(ProtocolError, match='key'):
      parties.server.receive(1, parties.from_client(Kind.ADVERTISE, 1, keys))


@pytest.mark.parametrize('mode', MODES)
def test_keys_are_checked_by_clients(mode):
  parties = Parties(mode, 4, 3).until(Kind.SHARES)
  dtype = messages.SIGNED_KEY_RECORD if mode == 'active' else messages.KEY_RECORD
  good = np.frombuffer(body(parties.inbox[1], parties.session, False), dtype)
  own = np.frombuffer(parties.clients[1]._box_pair.public, np.uint8)
  for change, problem in (
    (lambda r: r['id'].__setitem__(0, 1), 'known'),  # itself
    (lambda r: r['id'].__setitem__(2, 9), 'known'),
    (lambda r: r['id'].__setitem__(1, 0), 'ascending'),
    (lambda r: r['box'].__setitem__(0, r['box'][1]), 'distinct'),
    (lambda r: r['mask'].__setitem__(0, own), 'distinct'),
    (lambda r: r['mask'].__setitem__(0, 0), 'low order' if mode != 'active' else 'signed'),
    (lambda r: r['box'].__setitem__(0, 0), 'low order' if mode != 'active' else 'signed'),
  ):
    changed = good.copy()
    change(changed)
    with pytest.raises(ProtocolError, match=problem):
      parties.answer(1, parties.from_server(Kind.KEYS, 1, changed.tobytes()))
  with pytest.raises(BelowThreshold, match='advertised'):
    parties.answer(1, parties.from_server(Kind.KEYS, 1, good[:1].tobytes()))
  parties.until(None)


def test_active_clients_refuse_keys_that_the_server_made_up():
  parties = Parties('active', 4, 3).until(Kind.SHARES)
  text = body(parties.inbox[1], parties.session, False)
  changed = np.frombuffer(text, messages.SIGNED_KEY_RECORD).copy()
  changed['mask'][0] = np.frombuffer(primitives.Pair().public, np.uint8)
  with pytest.raises(ProtocolError, match='signed'):
    parties.answer(1, parties.from_server(Kind.KEYS, 1, changed.tobytes()))


@pytest.mark.parametrize('mode', MODES)
def test_boxes_are_checked(mode):
  parties = Parties(mode, 4, 3).until(Kind.MASKED)
  good = np.frombuffer(body(parties.inbox[1], parties.session, False), messages.BOX_RECORD)
  flipped, moved, stranger = good.copy(), good.copy(), good.copy()
  flipped['box'][0, 5] ^= 1
  moved['box'] = moved['box'][::-1]
  stranger['id'][2] = 7
  for boxes, problem in ((flipped, 'sealed'), (moved, 'sealed'), (stranger, 'known')):
    with pytest.raises(ProtocolError, match=problem):
      parties.answer(1, parties.from_server(Kind.BOXES, 1, boxes.tobytes()))
  with pytest.raises(BelowThreshold, match='shared their keys'):
    parties.answer(1, parties.from_server(Kind.BOXES, 1, good[:1].tobytes()))
  # A client must send one for each neighbour.
  early = Parties(mode, 4, 3).until(Kind.SHARES)
  text = body(early.answer(1), early.session, True)
  for short in (text[:-124], text[:32], text[:10], text + text[-124:]):
    with pytest.raises(ProtocolError):
      early.server.receive(1, early.from_client(Kind.SHARES, 1, short))


@pytest.mark.parametrize('mode', MODES)
def test_shares_are_checked(mode):
  parties = Parties(mode, 4, 3).until(Kind.UNMASK, {Kind.MASKED: [3]})
  text = body(parties.answer(1), parties.session, True)
  good = np.frombuffer(text, messages.SHARE_RECORD)
  for change, problem in (
    (lambda r: r['id'].__setitem__(0, 1), 'asked'),  # an index twice
    (lambda r: r['id'].__setitem__(0, 2**31), 'asked'),  # one out of range
    (lambda r: r['secret'].__setitem__(0, 1), 'asked'),
    (lambda r: r['share'].__setitem__((0, 0), 2**31 - 1), 'field'),
  ):
    changed = good.copy()
    change(changed)
    with pytest.raises(ProtocolError, match=problem):
      parties.server.receive(1, parties.from_client(Kind.UNMASK, 1, changed.tobytes()))


@pytest.mark.parametrize('row', [0, 3])
@pytest.mark.parametrize('mode', MODES)
def test_false_shares_are_noticed_and_no_sum_comes_out(mode, row):
  """Of a seed, and of a pairwise secret."""
  parties = Parties(mode, 4, 3).until(Kind.UNMASK, {Kind.MASKED: [3]})
  changed = np.frombuffer(body(parties.answer(1), parties.session, True), messages.SHARE_RECORD)
  changed = changed.copy()
  # Not the first limb: its low bits are cleared in a key, so another secret may be the same key.
  changed['share'][row, 5] ^= 1
  parties.server.receive(1, parties.from_client(Kind.UNMASK, 1, changed.tobytes()))
  for i in (0, 2):
    parties.server.receive(i, parties.answer(i))
  with pytest.raises(ProtocolError, match='shares must'):
    parties.server.close_round()
  with pytest.raises(ProtocolError, match='finished'):
    parties.server.total()


@pytest.mark.parametrize(('mode', 'kind'), [p for p in EACH_ROUND if p[1] != Kind.ADVERTISE])
def test_who_dropped_out_stays_out(mode, kind):
  """A well-formed message of one that was silent in the round before is not taken."""
  order = rounds(mode)
  before = order[order.index(kind) - 1]
  parties = Parties(mode, 4, 3).until(kind, {before: [3]})
  text = {
    Kind.SHARES: lambda: body(parties.answer(0), parties.session, True),
    Kind.MASKED: lambda: bytes(2 * parties.session.size),
    Kind.CHECK: lambda: body(parties.inbox[0], parties.session, False),
    Kind.UNMASK: lambda: body(parties.answer(0), parties.session, True),
  }[kind]()
  if kind == Kind.SHARES:  # with boxes for all that are there
    sent = np.frombuffer(text[32:], messages.BOX_RECORD)
    boxes = np.concatenate([sent[:1], sent])
    boxes['id'] = [0, 1, 2]
    text = text[:32] + boxes.tobytes()
  with pytest.raises(ProtocolError, match='dropped out'):
    parties.server.receive(3, parties.from_client(kind, 3, text))


@pytest.mark.parametrize(('mode', 'kind'), EACH_ROUND)
def test_a_message_that_is_too_long_is_refused_for_its_length_alone(mode, kind):
  """Before it is hashed, verified or parsed: it may be as long as the channel lets it be."""
  parties = Parties(mode, 4, 3).until(kind)
  with pytest.raises(ProtocolError, match='must fit'):
    parties.server.receive(1, parties.from_client(kind, 1, bytes(10_000)))
  if kind != Kind.ADVERTISE:
    names = {Kind.SHARES: 'KEYS', Kind.MASKED: 'BOXES', Kind.CHECK: 'SURVIVORS'}
    told = Kind[names.get(kind, 'REQUEST')]
    with pytest.raises(ProtocolError, match='must fit'):
      parties.answer(1, parties.from_server(told, 1, bytes(10_000)))


def test_the_server_takes_signatures_of_the_survivors_it_named_only():
  parties = Parties('active', 4, 3).until(Kind.CHECK)
  for signed in ([0, 1, 2], [0, 1, 2, 3, 3], []):
    message = parties.from_client(Kind.CHECK, 1, messages.id_list(signed))
    with pytest.raises(ProtocolError):
      parties.server.receive(1, message)
  parties.until(None)


def test_a_message_of_another_protocol_is_refused(monkeypatch):
  """Well sealed, and of these parties: only its first bytes are others."""
  parties = Parties('semi_honest', 4, 3)
  text = body(parties.answer(0), parties.session, True)
  with monkeypatch.context() as patch:
    patch.setattr(messages, '_MAGIC', b'FMS2')
    foreign = parties.from_client(Kind.ADVERTISE, 0, text)
  with pytest.raises(ProtocolError, match='of this protocol'):
    parties.server.receive(0, foreign)


@pytest.mark.parametrize('mode', MODES)
def test_a_request_that_is_cut_is_refused(mode):
  """Before its counts are whole, and before the clients that they announce."""
  parties = Parties(mode, 4, 3).until(Kind.UNMASK)
  good = messages.request([0, 1, 2], [3], b'')
  for text in (b'', good[:7], good[:8], good[:12], good[:-1], b'\xff' * 8):
    with pytest.raises(ProtocolError, match='request must'):
      parties.clients[1].unmask(parties.from_server(Kind.REQUEST, 1, text))
  parties.until(None)


@pytest.mark.parametrize(('mode', 'kind'), EACH_ROUND)
def test_a_client_that_nobody_knows_is_refused_whatever_it_says(mode, kind):
  """Well sealed under an id beyond the session's, as the channel says too."""
  parties = Parties(mode, 4, 3).until(kind)
  text = body(parties.answer(1), parties.session, True)
  for stranger in (4, 2**32 - 1):
    with pytest.raises(ProtocolError, match='sender must be one of the 4 clients'):
      parties.server.receive(stranger, parties.from_client(kind, 1, text, claims=stranger))


@pytest.mark.parametrize('mode', MODES)
def test_bodies_of_another_length_are_refused_though_they_are_well_sealed(mode):
  """One value alone would be added to all."""
  parties = Parties(mode, 4, 3)
  with pytest.raises(ProtocolError, match='keys must be 64 bytes'):
    parties.server.receive(1, parties.from_client(Kind.ADVERTISE, 1, bytes(63)))
  parties.until(Kind.MASKED)
  text = body(parties.answer(1), parties.session, True)
  for short in (b'', text[:2], text[:-2], text[:-1]):
    with pytest.raises(ProtocolError, match='values of client 1'):
      parties.server.receive(1, parties.from_client(Kind.MASKED, 1, short))
  for i in (0, 2, 3):
    parties.server.receive(i, parties.answer(i))
  parties.inbox = parties.server.close_round()
  parties.until(None)
  np.testing.assert_array_equal(parties.server.total(), parties.expected())


def test_signatures_have_no_place_where_nothing_is_signed():
  parties = Parties('semi_honest', 4, 3).until(Kind.UNMASK)
  record = bytes(messages.SIGNATURE_RECORD.itemsize)
  text = body(parties.inbox[1], parties.session, False) + record
  with pytest.raises(ProtocolError, match='no signatures'):
    parties.clients[1].unmask(parties.from_server(Kind.REQUEST, 1, text))
