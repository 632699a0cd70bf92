"""A malicious server, as a program against the clients of the protocol, and what it gets.

Client 0 is the victim. An attack plays the server: it sends what it likes, under the session's own
header and seal, and keeps all that it receives; in some attacks it pools that with what colluding
clients hold. It wins if it computes the victim's integers. In active mode no attack wins below the
stated number of colluding clients. In semi-honest mode the clients trust the server to tell all of
them the same: the attacks that win are those that this mode says it does not withstand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedjax_mem.secagg import messages, primitives, protocol, shamir
from fedjax_mem.secagg.client import pair_mask_key, word
from fedjax_mem.secagg.errors import ProtocolError
from fedjax_mem.secagg.messages import Kind
from tests.reference import evidence
from tests.reference.rogue_server import SEED, VICTIM, Result, Server
from tests.reference.secure_parties import Parties, body, session

pytestmark = pytest.mark.slow


def sized(mode: str) -> tuple[int, int]:
  """Returns (clients, threshold)."""
  return 5, 4 if mode == 'active' else 3


def begun(mode: str, **other: Any) -> Server:
  """Returns the server of a new session."""
  return Server(Parties(mode, *sized(mode), **other))


def substituted_keys(mode: str) -> Result:
  """Gives the victim keys of its own in place of those of all other clients."""
  server = begun(mode).follow(Kind.SHARES)
  victim, truth = server.parties.clients[VICTIM], server.parties.values[VICTIM]
  peers = range(1, server.session.num_clients)
  mine = {i: (primitives.Pair(), primitives.Pair()) for i in peers}
  forger = primitives.Identity()
  records = b''
  for i in peers:
    keys = mine[i][0].public + mine[i][1].public
    content = messages.signed_part(server.session, Kind.ADVERTISE, i, keys)
    signature = forger.sign(content) if server.session.active else b''
    records += messages.id_list([i]) + keys + signature
  try:
    sent = server.read(victim.share_keys(server.send(Kind.KEYS, VICTIM, records)))
  except ProtocolError as error:
    return Result(None, truth, f'client 0: {error}')
  server.commitments[VICTIM] = sent[:32]
  digest, boxes = server.session.digest, np.frombuffer(sent[32:], messages.BOX_RECORD)
  key = lambda i, a, b: mine[i][0].agree(server.keys[VICTIM][0], b'box', digest, word(a), word(b))
  back = np.zeros(len(boxes), messages.BOX_RECORD)
  back['id'] = boxes['id']
  for row, record in zip(back, boxes, strict=True):
    i = int(record['id'])
    text = primitives.unseal(
      key(i, VICTIM, i), record['box'].tobytes(), b'shares' + digest + word(VICTIM) + word(i)
    )
    for secret, share in enumerate(np.frombuffer(text, '<u4').reshape(2, shamir.LIMBS)):
      server.hold(i, VICTIM, secret, share)
    box = primitives.Box(key(i, i, VICTIM))
    sealed = box.seal(bytes(shamir.SHARE_BYTES * 2), b'shares' + digest + word(i) + word(VICTIM))
    row['box'] = np.frombuffer(sealed, np.uint8)
  masked = server.read(victim.mask(server.send(Kind.BOXES, VICTIM, back.tobytes()), truth))
  pairs = {
    i: pair_mask_key(server.session, mine[i][1], i, VICTIM, server.keys[VICTIM][1]) for i in peers
  }
  values = server.unmask(masked, server.restore(VICTIM, SEED), pairs)
  return Result(values, truth, got=server.counted())


def one_substituted_key(mode: str) -> Result:
  """Gives the victim a mask key of its own for one client, and follows the protocol otherwise."""
  server = begun(mode).follow(Kind.SHARES)
  victim, truth = server.parties.clients[VICTIM], server.parties.values[VICTIM]
  dtype = messages.SIGNED_KEY_RECORD if server.session.active else messages.KEY_RECORD
  records = np.frombuffer(server.told(VICTIM), dtype).copy()
  records['mask'][0] = np.frombuffer(primitives.Pair().public, np.uint8)
  try:
    victim.share_keys(server.send(Kind.KEYS, VICTIM, records.tobytes()))
  except ProtocolError as error:
    return Result(None, truth, f'client 0: {error}')
  return Result(None, truth, got='the mask of one pair; the other pairs and the seed hide the rest')


def disjoint_survivors(mode: str) -> Result:
  """Tells half of the clients that the victim survived, and the others that it dropped out."""
  if mode == 'active':
    return split_check(())
  server = begun(mode).follow(Kind.UNMASK)
  truth, refused = server.parties.values[VICTIM], ''
  for i, alive in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2]), (3, [1, 3, 4]), (4, [1, 3, 4])):
    refused = refused or server.request(i, alive)
  return Result(server.open(range(1, 5)), truth, refused, server.counted())


def split_check(colluders: tuple[int, ...]) -> Result:
  """Active mode: has one set of survivors signed with the victim, and another without it.

  Colluding clients sign anything, and hand over all that they hold.
  """
  server = begun('active').follow(Kind.CHECK)
  parties, truth = server.parties, server.parties.values[VICTIM]
  honest = [i for i in range(5) if i not in colluders]
  middle = honest[len(honest) // 2 :]
  without = [i for i in range(5) if i != VICTIM]
  with_it = [i for i in range(5) if i != middle[-1]]
  told = {i: without if i in middle else with_it for i in honest}
  signatures: dict[tuple[int, ...], dict[int, bytes]] = {tuple(with_it): {}, tuple(without): {}}
  refused = ''
  for i, alive in told.items():
    message = server.send(Kind.SURVIVORS, i, messages.id_list(alive))
    try:
      signatures[tuple(alive)][i] = parties.clients[i].check(message)[-64:]
    except ProtocolError as error:
      refused = refused or f'client {i}: {error}'
  for alive, signed in signatures.items():
    text = messages.id_list(list(alive))
    for i in set(colluders) & set(alive):
      content = messages.signed_part(server.session, Kind.CHECK, i, text)
      signed[i] = parties.identities[i].sign(content)
  server.pool(colluders)
  for i, alive in told.items():
    listed = sorted(signatures[tuple(alive)].items())
    proof = b''.join(messages.id_list([k]) + s for k, s in listed)
    refused = server.request(i, alive, proof) or refused
  return Result(server.open(range(1, 5)), truth, refused, server.counted())


def different_facts(mode: str) -> Result:
  """Shows the victim the boxes of as few clients as it accepts, and declares those dropped later.

  Each client is told a set of survivors of its own; no client colludes.
  """
  server = begun(mode).follow(Kind.MASKED)
  parties, truth = server.parties, server.parties.values[VICTIM]
  few = list(range(1, server.session.threshold))  # with itself: the threshold
  boxes = np.frombuffer(server.told(VICTIM), messages.BOX_RECORD)
  some = boxes[np.isin(boxes['id'], few)].tobytes()
  parties.inbox[VICTIM] = server.send(Kind.BOXES, VICTIM, some)
  server.follow(Kind.CHECK if mode == 'active' else Kind.UNMASK)
  everyone, refused = range(5), ''
  if mode == 'semi_honest':  # t = 3; the victim knows of 1 and 2
    for i, alive in (
      (0, [0, 1, 2]),
      (1, [0, 1, 3]),
      (2, [0, 2, 3]),
      (3, [0, 3, 4]),
      (4, [0, 3, 4]),
    ):
      refused = refused or server.request(i, alive)
    return Result(server.open(few), truth, refused, server.counted())
  sets = {0: [0, 1, 2, 3], 1: [0, 1, 3, 4], 2: [0, 2, 3, 4], 3: [0, 1, 3, 4], 4: [0, 2, 3, 4]}
  signed: dict[int, bytes] = {}
  for i in everyone:
    message = server.send(Kind.SURVIVORS, i, messages.id_list(sets[i]))
    signed[i] = parties.clients[i].check(message)[-64:]
  for i in everyone:
    same = [j for j in everyone if sets[j] == sets[i] and j in sets[i]]
    proof = b''.join(messages.id_list([j]) + signed[j] for j in same)
    refused = server.request(i, sets[i], proof) or refused
  return Result(server.open(few), truth, refused, server.counted())


def both_secrets(mode: str) -> Result:
  """Asks every other client for both secrets of the victim."""
  server = begun(mode).follow(Kind.UNMASK)
  truth, refused = server.parties.values[VICTIM], ''
  text = server.told(1)
  alive = list(range(5))
  signatures = text[8 + 4 * 5 :] if mode == 'active' else b''
  for i in range(1, 5):
    for request in (messages.request(alive, [VICTIM], signatures),):
      try:
        server.collect(i, server.parties.clients[i].unmask(server.send(Kind.REQUEST, i, request)))
      except ProtocolError as error:
        refused = refused or f'client {i}: {error}'
  return Result(server.open(range(1, 5)), truth, refused, server.counted())


def asked_twice(mode: str) -> Result:
  """Asks every client for the shares of one set of survivors, and then of another."""
  server = begun(mode).follow(Kind.UNMASK)
  truth = server.parties.values[VICTIM]
  text = server.told(1)
  signatures = text[8 + 4 * 5 :] if mode == 'active' else b''
  for i in range(5):
    assert not server.request(i, list(range(5)), signatures)
  refused = ''
  for i in range(1, 5):
    refused = server.request(i, [1, 2, 3, 4], signatures) or refused
  return Result(server.open(range(1, 5)), truth, refused, server.counted())


def victim_declared_dropped(mode: str) -> Result:
  """Tells all other clients that the victim dropped out, though it has its masked integers."""
  server = begun(mode)
  server.follow(Kind.CHECK if mode == 'active' else Kind.UNMASK)
  others, signed = [1, 2, 3, 4], b''
  if mode == 'active':
    for i in others:
      message = server.send(Kind.SURVIVORS, i, messages.id_list(others))
      signed += messages.id_list([i]) + server.parties.clients[i].check(message)[-64:]
  refused = ''
  for i in others:
    refused = refused or server.request(i, others, signed)
  truth = server.parties.values[VICTIM]
  got = f'{server.counted()}: its pairwise masks, under its own mask'
  return Result(server.open(others), truth, refused, got)


def replayed_session(mode: str) -> Result:
  """Replays an earlier session of the same identities in a new one: each message, then its body."""
  old = begun(mode)
  told = {}
  while old.parties.server.round is not None:
    told[old.parties.server.round] = dict(old.parties.inbox)
    old.parties.step()
  fresh = Parties(mode, *sized(mode))
  if mode == 'active':  # the same identities, another name
    fresh.identities = old.parties.identities
    fresh.session = session(mode, *sized(mode), fresh.identities)
    signers = fresh.identities
    fresh.clients = [protocol.Client(fresh.session, i, signers[i]) for i in range(5)]
    fresh.server = protocol.Server(fresh.session)
  server = Server(fresh)
  names = {Kind.SHARES: Kind.KEYS, Kind.MASKED: Kind.BOXES, Kind.CHECK: Kind.SURVIVORS}
  refused = []
  for kind in protocol.rounds(fresh.session)[1:]:
    server.follow(kind)
    again = told[kind][VICTIM]
    resealed = server.send(names.get(kind, Kind.REQUEST), VICTIM, body(again, old.session, False))
    for message in (again, resealed):
      try:
        fresh.answer(VICTIM, message)
      except ProtocolError as error:
        refused.append(str(error))
        continue
      # Old keys of others, which nobody holds any more, or the true list of survivors.
      refused.append(f'taken in the round {kind.name}')
      return Result(
        None, fresh.values[VICTIM], '; '.join(refused), 'nothing, as the old secrets are gone'
      )
  return Result(None, fresh.values[VICTIM], '; '.join(dict.fromkeys(refused)), 'nothing')


def replayed_request(mode: str) -> Result:
  """Sends the victim's neighbour every message again after it has answered."""
  server = begun(mode)
  parties, seen, refused = server.parties, [], ''
  while parties.server.round is not None:
    seen.append((parties.server.round, parties.inbox[1]))
    parties.step()
  client, truth = parties.clients[1], parties.values[VICTIM]
  calls = {
    Kind.SHARES: client.share_keys,
    Kind.MASKED: lambda m: client.mask(m, parties.values[1]),
    Kind.CHECK: client.check,
    Kind.UNMASK: client.unmask,
  }
  for kind, message in seen[1:]:
    with pytest.raises(ProtocolError) as error:
      calls[kind](message)
    refused = f'client 1: {error.value}'
  return Result(None, truth, refused, 'nothing that it had not before')


def lower_threshold(mode: str) -> Result:
  """Agrees on a lower threshold with the victim than with the others."""
  parties = Parties(mode, 7, 6)
  low = 5 if mode == 'active' else 4
  other = session(mode, 7, low, parties.identities, name=parties.session.name)
  parties.clients[VICTIM] = protocol.Client(other, VICTIM, (parties.identities or [None])[0])
  server, truth = Server(parties), parties.values[VICTIM]
  adverts = {i: parties.clients[i].advertise_keys() for i in range(7)}
  records = {}
  for i, message in adverts.items():
    text = server.read(message)
    server.keys[i] = text[:32], text[32:]
    records[i] = messages.id_list([i]) + text + (message[-64:] if mode == 'active' else b'')
  sent, refused = {}, ''
  for i in range(7):
    own = other if i == VICTIM else parties.session
    listed = b''.join(records[j] for j in range(7) if j != i)
    message = messages.pack(own, Kind.KEYS, messages.SERVER, i, listed)
    try:
      sent[i] = server.read(parties.clients[i].share_keys(message))
    except ProtocolError as error:
      refused = refused or f'client {i}: {error}'
  if VICTIM not in sent:
    return Result(None, truth, refused, 'nothing')
  boxes = []
  for i in range(1, 7):
    record = np.frombuffer(sent[i][32:], messages.BOX_RECORD).copy()
    mine = record[record['id'] == VICTIM]
    mine['id'] = i
    boxes.append(mine.tobytes())
  message = messages.pack(other, Kind.BOXES, messages.SERVER, VICTIM, b''.join(boxes))
  try:
    parties.clients[VICTIM].mask(message, truth)
  except ProtocolError as error:
    refused = f'client 0: {error}'
  return Result(None, truth, refused, 'no masked integers')


def too_few_survivors(mode: str) -> Result:
  """Asks for the shares of fewer survivors than the threshold."""
  server = begun(mode).follow(Kind.UNMASK)
  refused = ''
  for i in range(2):
    refused = server.request(i, [0, 1]) or refused
  return Result(server.open(range(1, 5)), server.parties.values[VICTIM], refused, server.counted())


def pooled(mode: str, count: int) -> Result:
  """Follows the protocol, and pools what it sees with colluding clients."""
  server = begun(mode).follow(Kind.UNMASK)
  server.pool(range(5 - count, 5))
  truth = server.parties.values[VICTIM]
  return Result(server.open(range(1, 5)), truth, got=server.counted())


def chosen_graph(mode: str) -> Result:
  """Chooses a graph in which all neighbours of the victim collude."""
  truth, seed = np.zeros(0), bytes(16)
  known = [primitives.Identity() for _ in range(10)] if mode == 'active' else []
  for number in range(10_000):
    seed = number.to_bytes(16, 'little')
    try:
      made = session(mode, 10, 2, known, neighbours=2, graph_seed=seed)
    except ValueError as error:
      return Result(None, truth, str(error), 'nothing')
    if made.holders(VICTIM).tolist() == [0, 8, 9]:
      break
  server = Server(Parties(mode, 10, 2, neighbours=2, graph_seed=seed)).follow(Kind.UNMASK)
  server.pool((8, 9))
  truth = server.parties.values[VICTIM]
  return Result(server.open((8, 9)), truth, got=server.counted())


def invented_clients(mode: str) -> Result:
  """Makes up all clients but the victim, and subtracts what it made up from the sum."""
  parties = Parties(mode, *sized(mode))
  truth = parties.values[VICTIM]
  if mode == 'active':  # the victim knows the others' identities from outside the protocol
    server = Server(parties).follow(Kind.SHARES)
    forgers = [primitives.Identity() for _ in range(5)]
    records = b''
    for i in range(1, 5):
      keys = primitives.Pair().public + primitives.Pair().public
      content = messages.signed_part(server.session, Kind.ADVERTISE, i, keys)
      records += messages.id_list([i]) + keys + forgers[i].sign(content)
    try:
      parties.clients[VICTIM].share_keys(server.send(Kind.KEYS, VICTIM, records))
    except ProtocolError as error:
      return Result(None, truth, f'client 0: {error}')
  parties.until(None)
  return Result(parties.server.total() - sum(parties.values[1:]), truth, got='the sum')


class Attack(NamedTuple):
  """An attack, and how it has to end.

  Attributes:
    name: in words.
    play: mode -> result.
    wins: the modes in which the server gets the victim's integers.
    words: what a refusal says, by mode; none: nobody refuses.
  """

  name: str
  play: Callable[[str], Result]
  wins: tuple[str, ...] = ()
  words: dict[str, str] = {}  # noqa: RUF012


SEMI, ACTIVE = 'semi_honest', 'active'
BOTH = lambda words: {SEMI: words, ACTIVE: words}
ATTACKS = (
  Attack('keys of its own for all peers', substituted_keys, (SEMI,), {ACTIVE: 'must be signed'}),
  Attack('a mask key of its own for one peer', one_substituted_key, (), {ACTIVE: 'must be signed'}),
  Attack(
    'disjoint sets of survivors, nobody colludes',
    disjoint_survivors,
    (),
    {ACTIVE: 'signatures of the survivors must be 4'},
  ),
  Attack(
    'different facts for each client: boxes, then survivors',
    different_facts,
    (SEMI,),
    {ACTIVE: 'signatures of the survivors must be 4'},
  ),
  Attack('both secrets of one client in one request', both_secrets, (), BOTH('both secrets')),
  Attack('a second request with other survivors', asked_twice, (), BOTH('in its turn, and once')),
  Attack('the victim declared dropped out', victim_declared_dropped),
  Attack('an earlier session replayed', replayed_session, (), BOTH('session that both')),
  Attack('messages of the session replayed', replayed_request, (), BOTH('in its turn, and once')),
  Attack(
    'a lower threshold told to the victim',
    lower_threshold,
    (),
    {SEMI: 'as its sender sealed it', ACTIVE: 'must be signed'},
  ),
  Attack('fewer survivors than the threshold', too_few_survivors, (), BOTH('survivors must be')),
  Attack(
    't - 1 colluding clients, protocol followed',
    lambda mode: pooled(mode, sized(mode)[1] - 1),
  ),
  Attack(
    't colluding clients, protocol followed',
    lambda mode: pooled(mode, sized(mode)[1]),
    (SEMI, ACTIVE),
  ),
  Attack(
    'a sparse graph chosen by the server, 2 of 10 collude',
    chosen_graph,
    (SEMI,),
    {ACTIVE: 'neighbours must be None'},
  ),
  Attack(
    'all clients but the victim made up', invented_clients, (SEMI,), {ACTIVE: 'must be signed'}
  ),
)
# Active mode only: (colluding clients of 5 at t = 4, whether the split wins). 2 t - n = 3.
COLLUDING = (((), False), ((4,), False), ((3, 4), False), ((2, 3, 4), True))


@pytest.mark.parametrize('mode', (SEMI, ACTIVE))
@pytest.mark.parametrize('attack', ATTACKS, ids=lambda attack: attack.name)
def test_a_server_gets_what_the_mode_says_and_no_more(attack, mode):
  result = attack.play(mode)
  assert result.won == (mode in attack.wins), result
  words = attack.words.get(mode)
  assert words in result.refused if words else not result.refused, result


@pytest.mark.parametrize('colluders, wins', COLLUDING, ids=lambda x: str(x))
def test_active_mode_withstands_fewer_than_2t_minus_n_colluding_clients(colluders, wins):
  result = split_check(colluders)
  assert result.won == wins
  assert wins or 'signatures of the survivors must be 4' in result.refused


def ended(result: Result) -> str:
  """Returns how an attack ended, in words."""
  if result.won:
    return f'**obtained** ({result.got})'
  refused = f'refused ({result.refused.rstrip(".")})' if result.refused else 'nobody refuses'
  return f'{refused}; the server got {result.got or "nothing"}'


def rows(full: bool) -> list[evidence.Row]:
  del full
  listed: list[evidence.Row] = [
    {'attack': a.name, 'semi-honest': ended(a.play(SEMI)), 'active': ended(a.play(ACTIVE))}
    for a in ATTACKS
  ]
  for colluders, _ in COLLUDING[1:]:
    name = f'disjoint sets of survivors, {len(colluders)} of 5 collude'
    listed.append({'attack': name, 'semi-honest': '–', 'active': ended(split_check(colluders))})
  return listed


if __name__ == '__main__':
  evidence.main('malicious_server', rows)
