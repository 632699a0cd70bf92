"""The state machines under any order of good, old, altered, foreign and misdirected messages."""

import collections

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from reference.secure_parties import Parties, body, session

from fedjax_mem.secagg import messages, protocol
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind

N, T = 4, 3
ENDS = collections.Counter()
SPARSE = session(n=8, t=2, neighbours=2, graph_seed=bytes(16))
SPARSE_ENDS = collections.Counter()
CLIENTS = st.integers(0, N - 1)


class Machine(RuleBasedStateMachine):
  """A network that loses, repeats, alters and invents; what is refused must change nothing."""

  mode = 'semi_honest'

  def __init__(self):
    """Starts a session in which nothing was sent."""
    super().__init__()
    self.old: list[bytes] = []
    self.received: set[int] = set()
    self.answers: dict[int, bytes] = {}
    self.shown: dict[tuple[int, int], int] = {}
    self.failed = False

  @initialize()
  def begin(self):
    """Makes the parties."""
    self.parties = Parties(self.mode, N, T)

  def running(self):
    """Whether the session is not over."""
    return self.parties.server.round is not None

  def produce(self, i):
    """Returns client i's message of this round, made once."""
    if i not in self.answers:
      self.answers[i] = self.parties.answer(i)
      if self.parties.server.round == Kind.UNMASK:
        self.note(i)
    return self.answers[i]

  def note(self, i):
    """Notes which secret of whom client i has shown a share of."""
    text = body(self.answers[i], self.parties.session, True)
    for record in np.frombuffer(text, messages.SHARE_RECORD):
      assert (
        self.shown.setdefault((i, int(record['id'])), int(record['secret'])) == record['secret']
      )

  @precondition(running)
  @rule(i=CLIENTS)
  def deliver(self, i):
    """Sends the server what client i has to say."""
    if i not in self.parties.inbox:
      return
    message = self.produce(i)
    if i in self.received:
      with pytest.raises(ProtocolError):
        self.parties.server.receive(i, message)
      return
    self.parties.server.receive(i, message)
    self.received.add(i)
    self.old.append(message)

  @precondition(running)
  @rule(i=CLIENTS, where=st.integers(0, 10**6), how=st.sampled_from(['flip', 'cut', 'grow']))
  def alter(self, i, where, how):
    """Alters a message on its way to the server, and one on its way to a client."""
    if i not in self.parties.inbox:
      return
    with pytest.raises(ProtocolError):
      self.parties.server.receive(i, changed(self.produce(i), where, how))
    if self.parties.inbox[i]:
      with pytest.raises(ProtocolError):
        self.parties.answer(i, changed(self.parties.inbox[i], where, how))

  @precondition(lambda self: self.running() and self.old)
  @rule(i=CLIENTS, which=st.integers(0, 10**6))
  def replay(self, i, which):
    """Sends an old message again, as its sender or as another."""
    message = self.old[which % len(self.old)]
    with pytest.raises(ProtocolError):
      self.parties.server.receive(i, message)

  @precondition(running)
  @rule(i=CLIENTS, other=st.integers(-2, N + 2))
  def impersonate(self, i, other):
    """Sends a message under another's name."""
    if i in self.parties.inbox and other != i:
      with pytest.raises(ProtocolError):
        self.parties.server.receive(other, self.produce(i))

  @precondition(running)
  @rule(i=CLIENTS, kind=st.sampled_from(list(Kind)), junk=st.binary(max_size=200))
  def invent(self, i, kind, junk):
    """Sends a client a well-formed message of any kind with any body, as a bad server would."""
    if self.parties.server.round == Kind.ADVERTISE:
      return
    message = self.parties.from_server(kind, i, junk)
    if message != self.parties.inbox.get(i):
      with pytest.raises(ProtocolError):
        self.parties.answer(i, message)

  @precondition(lambda self: self.running() and self.parties.server.round == Kind.UNMASK)
  @rule(i=CLIENTS, split=st.lists(st.integers(0, 3), min_size=N, max_size=N))
  def ask(self, i, split):
    """Asks a client for other shares: 0 neither, 1 the seed, 2 the secret, 3 both."""
    alive = [j for j in range(N) if split[j] & 1]
    gone = [j for j in range(N) if split[j] & 2]
    told = self.parties.inbox.get(i)
    text = body(told, self.parties.session, False) if told else b''
    signed = text[
      8 + 4 * int.from_bytes(text[:4], 'little') + 4 * int.from_bytes(text[4:8], 'little') :
    ]
    message = self.parties.from_server(Kind.REQUEST, i, messages.request(alive, gone, signed))
    honest = list(self.parties.server.survivors) == alive and not set(alive) & set(gone)
    if message == told or (honest and self.mode == 'active') or i in self.answers:
      return
    try:
      answer = self.parties.answer(i, message)
    except ProtocolError:
      return
    # A semi-honest client takes any one partition with t survivors; never another after it.
    assert self.mode == 'semi_honest'
    assert len(alive) >= T and i in alive and not set(alive) & set(gone)
    self.answers[i] = answer
    self.note(i)
    with pytest.raises(ProtocolError):
      self.parties.answer(i, told)
    if sorted(alive) != list(self.parties.server.survivors):
      del self.parties.inbox[i]  # the server has lied to this one: it is gone

  @precondition(running)
  @rule()
  def deliver_all(self):
    """Sends the server what all have to say that have not yet."""
    for i in range(N):
      if i not in self.received:
        self.deliver(i)

  @precondition(lambda self: not self.running())
  @rule(i=CLIENTS, which=st.integers(0, 10**6))
  def come_late(self, i, which):
    """Sends a message when it is over, or asks for another round."""
    message = self.old[which % len(self.old)] if self.old else b''
    with pytest.raises(ProtocolError):
      self.parties.server.receive(i, message)
    with pytest.raises(ProtocolError):
      self.parties.server.close_round()

  @precondition(running)
  @rule(patience=st.integers(0, 5))
  def close(self, patience):
    """Ends the round, mostly once enough are there."""
    server = self.parties.server
    if len(self.received) < T:
      if patience:
        return
      with pytest.raises(BelowThreshold):
        server.close_round()
      self.failed = True
      return
    self.parties.inbox = server.close_round()
    self.received, self.answers = set(), {}

  def teardown(self):
    """The sum is there, exact, if and only if all rounds got through."""
    if not hasattr(self, 'parties'):
      return
    server = self.parties.server
    ENDS[server.round, self.failed] += 1
    if server.round is not None or self.failed:
      with pytest.raises(ProtocolError):
        server.total()
    else:
      np.testing.assert_array_equal(server.total(), self.parties.expected())


class ActiveMachine(Machine):
  """The same with signatures and the check of survivors."""

  mode = 'active'


def changed(message, where, how):
  """Returns the message with a bit flipped, cut or made longer."""
  if how == 'cut':
    return message[: where % len(message)]
  if how == 'grow':
    return message + bytes(1 + where % 100)
  altered = bytearray(message)
  altered[where % len(message)] ^= 1 << where % 8
  return bytes(altered)


SETTINGS = settings(
  max_examples=150,
  stateful_step_count=40,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
def test_a_session_gives_the_sum_or_fails_and_both_ends_are_reached():
  for machine in (Machine.TestCase, ActiveMachine.TestCase):
    machine.settings = SETTINGS
    machine('runTest').runTest()
  assert ENDS[None, False] > 3
  assert ENDS[None, True] > 3


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True)
@given(
  neighbours=st.sampled_from([2, 4, 6]),
  seed=st.binary(min_size=16, max_size=16),
  silent=st.lists(st.sampled_from([None, *protocol.rounds(SPARSE)]), min_size=8, max_size=8),
)
def test_a_sparse_graph_gives_the_sum_or_nothing(neighbours, seed, silent):
  """Whoever is silent from whichever round on; a client with too few neighbours gives up."""
  parties = Parties(n=8, t=neighbours // 2 + 1, neighbours=neighbours, graph_seed=seed)
  server = parties.server
  try:
    while server.round is not None:
      for i in list(parties.inbox):
        if silent[i] is not None and silent[i] <= server.round:
          continue
        try:
          message = parties.answer(i)
        except BelowThreshold:
          continue
        server.receive(i, message)
      parties.inbox = server.close_round()
  except BelowThreshold:
    SPARSE_ENDS['nothing'] += 1
    with pytest.raises(ProtocolError, match='finished'):
      server.total()
    return
  SPARSE_ENDS['sum'] += 1
  np.testing.assert_array_equal(server.total(), parties.expected())


@pytest.mark.slow
def test_both_ends_of_the_sparse_graph_were_reached():
  test_a_sparse_graph_gives_the_sum_or_nothing()
  assert min(SPARSE_ENDS['sum'], SPARSE_ENDS['nothing']) > 3
