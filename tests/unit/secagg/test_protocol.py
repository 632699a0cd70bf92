"""The protocol: exact sums whoever drops out, nothing below the threshold, what is agreed on."""

import collections
import itertools

import numpy as np
import pytest
from reference.secure_parties import Parties, body, identities, session

from fedjax_mem.secagg import graph, primitives, protocol
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind

MODES = ['semi_honest', 'active']


def rounds(mode):
  return protocol.rounds(Parties(mode).session)


EACH_ROUND = [(mode, kind) for mode in MODES for kind in rounds(mode)]


@pytest.mark.parametrize(('mode', 'n', 't'), [('semi_honest', 6, 4), ('active', 7, 5)])
@pytest.mark.parametrize('bits', [16, 32, 64])
def test_sums_are_exact_at_the_ends_of_the_range(mode, n, t, bits):
  bound = (2 ** (bits - 1) - 1) // n
  signers = identities(n, mode)
  agreed = session(mode, n, t, signers, bits=bits, bound=bound, size=70_000)
  rng = np.random.default_rng(bits)
  values = rng.integers(-bound, bound, (n, 70_000), endpoint=True)
  values[:, 0], values[:, 1] = bound, -bound
  drops = {0: Kind.MASKED, 2: Kind.UNMASK}
  found = protocol.run(agreed, lambda i: values[i], drops, dict(enumerate(signers)))
  assert found.survivors == tuple(range(1, n))
  np.testing.assert_array_equal(found.total, values[1:].sum(0))
  assert found.total.dtype == np.int64
  # What is reported: of a client's bytes all but a few hundred a neighbour are its values.
  assert (found.sent[1] - values[0].size * bits // 8) < 400 * n
  assert (found.client_seconds[1:] > 0).all()
  assert found.server_seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_whoever_drops_out_in_whichever_round(mode):
  """n - t clients, in every pair of rounds."""
  n, t = 7, 5
  for a, b in itertools.product(rounds(mode), repeat=2):
    parties = Parties(mode, n, t)
    silent = {k: [i for i, at in ((1, a), (5, b)) if at == k] for k in rounds(mode)}
    parties.until(None, silent)
    left = {i for i, at in ((1, a), (5, b)) if at <= Kind.MASKED}
    assert parties.server.survivors == tuple(i for i in range(n) if i not in left)
    np.testing.assert_array_equal(parties.server.total(), parties.expected())


@pytest.mark.parametrize(('mode', 'kind'), EACH_ROUND)
def test_below_the_threshold_nothing_is_released(mode, kind):
  parties = Parties(mode, 4, 3).until(kind)
  with pytest.raises(BelowThreshold, match='nothing is released'):
    parties.step(silent=(0, 2))
  with pytest.raises(ProtocolError, match='finished'):
    parties.server.total()
  for late in (lambda: parties.server.close_round(), lambda: parties.server.receive(0, b'')):
    with pytest.raises(ProtocolError, match='over'):
      late()


def test_the_sparse_graph_sums_exactly():
  n, k, t = 40, 10, 5
  parties = Parties(n=n, t=t, neighbours=k, graph_seed=b'g' * 16, bits=32)
  parties.until(None, {Kind.SHARES: [3], Kind.MASKED: [0, 17], Kind.UNMASK: [5, 20]})
  assert len(parties.server.survivors) == 37
  np.testing.assert_array_equal(parties.server.total(), parties.expected())


def test_the_sparse_graph_fails_closed_where_a_neighbourhood_is_gone():
  parties = Parties(n=20, t=4, neighbours=4, graph_seed=b'g' * 16).until(Kind.UNMASK)
  around = parties.session.holders(0).tolist()
  with pytest.raises(BelowThreshold, match='shares of client'):
    parties.step(silent=around[:3])
  with pytest.raises(ProtocolError, match='finished'):
    parties.server.total()


@pytest.mark.slow
def test_recovery_at_the_degree_of_the_bound():
  """k and t for a failure probability of 2 ** -30: drawn drop-outs are always recovered from."""
  n, dropout = 60, 0.1
  degree = graph.degree(n, corrupt=0.1, dropout=dropout)
  k, t = degree.neighbours, degree.threshold
  rng = np.random.default_rng(3)
  for trial in range(4):
    seed = bytes([trial]) * 16
    parties = Parties(n=n, t=t, neighbours=k, graph_seed=seed, bits=32)
    out = rng.choice(n, int(dropout * n), replace=False).tolist()
    parties.until(None, {Kind.MASKED: out[::2], Kind.UNMASK: out[1::2]})
    np.testing.assert_array_equal(parties.server.total(), parties.expected())


@pytest.mark.parametrize(
  'values',
  [
    np.array([1001, 0, 0, 0, 0]),
    np.array([-1001, 0, 0, 0, 0]),
    np.array([2**63, 0, 0, 0, 0], np.uint64),
    np.array([-(2**63), 0, 0, 0, 0]),
    np.zeros(4, int),
    np.zeros((5, 1), int),
    np.zeros(5),
  ],
)
def test_values_out_of_range_are_refused(values):
  parties = Parties().until(Kind.MASKED)
  with pytest.raises(ValueError, match='values must be'):
    parties.clients[1].mask(parties.inbox[1], values)
  parties.until(None)
  np.testing.assert_array_equal(parties.server.total(), parties.expected())


@pytest.mark.parametrize(
  ('mode', 'wrong', 'problem'),
  [
    ('semi_honest', {'t': 2}, 'threshold'),
    ('semi_honest', {'t': 5}, 'threshold'),
    ('semi_honest', {'n': 1, 't': 1}, 'num_clients'),
    ('semi_honest', {'n': True}, 'num_clients'),
    ('semi_honest', {'n': 2**21, 't': 2**21}, 'num_clients'),
    ('semi_honest', {'bound': 8192}, 'bound'),
    ('semi_honest', {'bound': 0}, 'bound'),
    ('semi_honest', {'bits': 8}, 'bits'),
    ('semi_honest', {'n': 40_000, 't': 20_001, 'bound': 1}, 'bits must be more'),
    ('semi_honest', {'size': 0}, 'size'),
    ('semi_honest', {'name': b'1' * 15}, 'name'),
    ('semi_honest', {'name': 'sixteen letters!'}, 'name'),
    ('other', {}, 'mode'),
    ('semi_honest', {'n': 8, 'neighbours': 3, 'graph_seed': bytes(16)}, 'even'),
    ('semi_honest', {'n': 8, 'neighbours': 8, 'graph_seed': bytes(16)}, 'neighbours'),
    ('semi_honest', {'n': 8, 't': 5, 'neighbours': 4, 'graph_seed': bytes(16)}, 'threshold'),
    ('semi_honest', {'n': 8, 'neighbours': 4}, 'graph_seed'),
    ('active', {'n': 6, 't': 4}, 'threshold'),
    ('active', {'n': 8, 't': 6, 'neighbours': 6, 'graph_seed': bytes(16)}, 'neighbours'),
  ],
)
def test_what_cannot_be_agreed_on_is_refused(mode, wrong, problem):
  given = {'n': 4, 't': 3, **wrong}
  known = identities(int(given['n']), mode) if given['n'] < 100 else ()
  with pytest.raises(ValueError, match=problem):
    session(mode, known=known, **given)


def test_identities_go_with_the_mode():
  known = identities(4, 'active')
  for mode, listed in (
    ('semi_honest', known),
    ('active', known[:3]),
    ('active', [*known[:3], known[0]]),
    ('active', ()),
  ):
    with pytest.raises(ValueError, match='identities'):
      session(mode, known=listed)
  for key in (known[3].public[:-1], known[3].public.hex()):
    with pytest.raises(ValueError, match='identities must be public keys'):
      protocol.Session(
        name=bytes(16),
        degree=graph.Degree(4, None, 3),
        size=5,
        bound=9,
        mode='active',
        identities=(*(i.public for i in known[:3]), key),
      )
  agreed = session('active', known=known)
  for client, identity in ((0, known[1]), (0, None)):
    with pytest.raises(ValueError, match='identity'):
      protocol.Client(agreed, client, identity)
  with pytest.raises(ValueError, match='identity'):
    protocol.Client(session(), 0, known[0])
  with pytest.raises(ValueError, match='client'):
    protocol.Client(session(), 4)


def test_every_parameter_is_bound_to_the_session():
  base = {'name': bytes(16), 'degree': graph.Degree(8, None, 5), 'size': 5, 'bound': 9}
  variants = [
    {},
    {'name': b'1' * 16},
    {'degree': graph.Degree(9, None, 5)},
    {'degree': graph.Degree(8, None, 6)},
    {'size': 6},
    {'bound': 8},
    {'bits': 64},
    {'degree': graph.Degree(8, 4, 4), 'graph_seed': bytes(16)},
    {'degree': graph.Degree(8, 4, 4), 'graph_seed': b'1' * 16},
    {'degree': graph.Degree(8, 6, 4), 'graph_seed': bytes(16)},
    {'degree': graph.Degree(8, 4, 3), 'graph_seed': bytes(16)},
  ]
  digests = {protocol.Session(**{**base, **v}).digest for v in variants}
  assert len(digests) == len(variants)


@pytest.mark.parametrize('mode', MODES)
def test_no_secret_is_printed_or_sent(mode):
  parties = Parties(mode, 4, 3)
  client = parties.clients[1]
  secrets = [client._seed, client._mask_pair.secret, client._box_pair.secret]
  shown = []
  while parties.server.round is not None:
    shown += [repr(x).encode() for x in (*parties.clients, parties.server, parties.session)]
    shown += [bytes(m) for m in parties.step().values()]
  text = b''.join(shown)
  for secret in secrets:
    assert secret not in text
    assert secret.hex().encode() not in text
    assert repr(secret).encode() not in text


@pytest.mark.parametrize('mode', MODES)
def test_every_direction_pair_and_session_has_a_key_of_its_own(mode):
  """So that the nonce of a box and the counter of a mask may start at zero."""
  seen = set()
  for _ in range(2):
    parties = Parties(mode, 4, 3).until(Kind.MASKED)
    keys = {(b, a): k for a in range(4) for b, k in parties.clients[a]._open_keys.items()}
    masks = {(a, b): k for a in range(4) for b, k in parties.clients[a]._mask_keys.items()}
    assert all(masks[a, b] == masks[b, a] for a, b in masks)
    seen |= {*keys.values(), *masks.values()}
  assert len(seen) == 2 * (4 * 3 + 4 * 3 // 2)


@pytest.mark.parametrize('mode', MODES)
def test_every_mask_has_a_key_of_its_own(mode, monkeypatch):
  """A pair's is used by its two clients, a client's own by itself, and none in two sessions."""
  used = collections.Counter()
  add_masks = primitives.add_masks

  def noted(total, plus, minus):
    used.update([*plus, *minus])
    add_masks(total, plus, minus)

  monkeypatch.setattr(primitives, 'add_masks', noted)
  for _ in range(2):
    Parties(mode, 4, 3).until(Kind.CHECK if mode == 'active' else Kind.UNMASK)
  assert sorted(used.values()) == [1] * 2 * 4 + [2] * 2 * 6


@pytest.mark.parametrize('mode', MODES)
def test_every_secret_of_every_client_and_session_is_fresh(mode):
  """Masks from a secret that others know, such as a constant, hide nothing from them."""
  clients = [x for _ in range(2) for x in Parties(mode, 4, 3).clients]
  secrets = [(x._seed, x._mask_pair.secret, x._box_pair.secret) for x in clients]
  assert len({secret for three in secrets for secret in three}) == 2 * 4 * 3


def test_the_same_values_are_masked_differently_by_each_client_and_in_each_session():
  """No constant can be subtracted: all differences of what is sent are different, too."""
  rows = []
  for _ in range(2):
    parties = Parties(n=4, t=3, bits=64, size=2).until(Kind.MASKED)
    parties.values = [np.zeros(2, int)] * 4
    sent = [parties.answer(i) for i in range(4)]
    rows += [np.frombuffer(body(x, parties.session, True), '<u8') for x in sent]
  assert len({tuple(x.tolist()) for x in rows}) == 8
  differences = {tuple((a - b).tolist()) for a, b in itertools.permutations(rows, 2)}
  assert len(differences) == 8 * 7
