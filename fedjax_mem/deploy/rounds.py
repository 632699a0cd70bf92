"""One round, at the server: who is asked, what comes back in time, and the step.

The stages are those of the simulation, in its order of summation: the result depends on who has
answered, and not on who was first.
"""

import functools
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from fedjax_mem import engine
from fedjax_mem.core import Member, Population, State, keys
from fedjax_mem.deploy import enrolment, messages, secure
from fedjax_mem.deploy.form import Answer, Asked
from fedjax_mem.deploy.job import Plan
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.memory import NEVER
from fedjax_mem.engine import Given, Told
from fedjax_mem.secagg import protocol
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind

TRAIN, UPDATE, DECLINED = 'train', 'update', 'declined'
_TRAINING = 0.5  # share of a round's time for the first exchange, under masks
DRAWN = 'last'  # in a state's tables: round after which a client's own states count


class Link(Protocol):
  """What carries the messages: the engine, or in tests a function call."""

  def exchange(self, blobs: Mapping[str, bytes], timeout: float) -> dict[str, bytes]:
    """Sends each client its bytes; returns the answers that came in time."""

  def connected(self) -> frozenset[str]:
    """Returns the names of the clients that can be reached."""

  def stopped(self) -> bool:
    """Returns whether the job is to end."""


class TooFew(RuntimeError):
  """Fewer clients have answered than a round needs; nothing has changed."""


class Done(NamedTuple):
  """A round that has ended.

  Attributes:
    state: after it.
    metrics: of the round, name -> array.
    up: bytes that clients have sent, those of refused messages included.
    down: bytes that were sent to them.
    refused: messages of clients that were refused.
  """

  state: State
  metrics: dict[str, np.ndarray]
  up: int
  down: int
  refused: int


class Post:
  """The server's messages in one job: sealed, sent, and taken if they count.

  Attributes:
    run: id of the run.
    inbox: the gate.
    up: bytes received in this round.
    down: bytes sent in this round.
  """

  def __init__(self, kit: Kit, run: str, link: Link, say: Callable[[str], None]):
    """Opens it.

    Args:
      kit: the server's kit.
      run: id of the run.
      link: what carries the messages.
      say: takes a line for the log.
    """
    self._kit, self.run, self._link, self._say = kit, run, link, say
    public = {name: key for name, key in kit.public.items() if name != messages.SERVER}
    self.inbox = messages.Inbox(run, public)
    self.up = self.down = 0

  def exchange(
    self, kind: str, wanted: str, round: int, bodies: Mapping[int, bytes], most: int, timeout: float
  ) -> dict[int, bytes]:
    """Returns the bodies of the answers that count, by client id.

    Args:
      kind: of what is sent.
      wanted: kind of the answers.
      round: from 0; -1: none.
      bodies: client id -> what it is sent.
      most: the most bytes of the body of an answer, by the plan.
      timeout: seconds.
    """
    turn, names = secrets.token_hex(16), self._kit.clients
    header = lambda name: messages.Header(self.run, round, turn, kind, messages.SERVER, name)
    asked = {names[i]: header(names[i]) for i in bodies}
    sealed = {
      names[i]: messages.seal(self._kit.sign, asked[names[i]], body) for i, body in bodies.items()
    }
    sizes = [messages.size(x.reply(wanted), most) for x in asked.values()]
    self.inbox.expect(asked, max(sizes, default=0))
    self.down += sum(map(len, sealed.values()))
    began = time.monotonic()
    answers = self._link.exchange(sealed, timeout)
    seconds = time.monotonic() - began
    self.up += sum(map(len, answers.values()))
    taken = {}
    for i in sorted(bodies):
      if names[i] in answers:
        envelope = self.inbox.take(names[i], answers[names[i]])
        body = None if envelope is None else self._body(envelope, wanted)
        if body is not None:
          taken[i] = body
    when = 'job' if round < 0 else f'round {round + 1}'
    for name, why in self.inbox.notes:
      self._say(f'{when}: refused what {name} sent: {why}')
    self._say(f'{when}: {wanted}: {len(taken)} of {len(bodies)} in {seconds:.3f} s')
    return taken

  def unsound(self, client: int, round: int, why: str) -> None:
    """Counts an answer that was taken and turned out to be none of its kind, and says so."""
    name = self._kit.clients[client]
    self.inbox.unsound(name, why)
    self._say(f'round {round + 1}: refused what {name} sent: malformed: {why}')

  def _body(self, envelope: messages.Envelope, wanted: str) -> bytes | None:
    """Returns the body of an answer; None if the client declines, or it is of another kind."""
    header = envelope.header
    if header.kind == DECLINED:
      self._say(f'round {header.round + 1}: {header.sender} declines')
    elif header.kind != wanted:
      self.inbox.unsound(header.sender, f'of kind {header.kind!r}')
    else:
      return envelope.body
    return None


class Rounds:
  """Runs rounds, each a draw, exchanges with its clients, and the server's step."""

  def __init__(
    self,
    plan: Plan,
    population: Population,
    post: Post,
    kit: Kit,
    *,
    seed: int,
    root: np.ndarray,
    timeout: float,
    least: int | None,
  ):
    """Compiles nothing yet.

    Args:
      plan: of the round.
      population: as configured; without arrays, since only its numbers of examples are used.
      post: for messages.
      kit: the server's kit.
      seed: the run's seed.
      root: the secret root, uint32 [2].
      timeout: most seconds of a round.
      least: the fewest clients whose updates make a round; None: one, if any is asked. A draw of
        fewer needs all of these: it would be the same in every try, and may be of nobody.
    """
    self.plan, self.post, self._kit = plan, post, kit
    self._seed, self._root = np.uint32(seed), root
    self._timeout, self.least = timeout, least
    setting = plan.setting
    self._counts = population
    options = engine.compiler_options(jax.default_backend()) or None  # as in a simulated run
    self._draw = keys.jit(functools.partial(engine.drawn, setting), compiler_options=options)
    summed = plan.sealing is not None
    self._settle = keys.jit(
      functools.partial(engine.settled, setting, summed=summed), compiler_options=options
    )

  def draw(self, state: State) -> tuple[Member, dict[str, Any], dict[str, np.ndarray]]:
    """Returns (cohort [C], server states, metrics) of the next draw, on the host."""
    drawn = self._draw(bare(state), self._counts, self._seed, self._root)
    cohort, servers, metrics = drawn
    return jax.device_get(cohort), servers, jax.device_get(metrics)

  def run(self, state: State, drawn: Any) -> Done:
    """Returns the round after `state`, of the cohort that was drawn.

    Raises:
      TooFew: nothing has changed.
    """
    cohort, servers, noted = drawn
    self.post.up = self.post.down = 0
    before = sum(self.post.inbox.refused.values())
    gone = enrolment.revoked(self._kit)
    asked = [
      int(i)
      for i, there in zip(cohort.id, cohort.arrived, strict=True)
      if there and self._kit.clients[int(i)] not in gone
    ]
    made = self._plain if self.plan.sealing is None else self._masked
    given, came, counts = made(state, cohort, servers, sorted(asked))
    self._check(len(came), int(cohort.arrived.sum()), len(asked))
    arrived = np.isin(cohort.id, list(came)) & cohort.arrived
    new, metrics, kept = self._settle(
      bare(state), cohort._replace(arrived=arrived), servers, given, counts, self._seed, self._root
    )
    last = np.array(state.clients[DRAWN])
    last[cohort.id[np.asarray(kept)]] = int(state.round)
    new = new._replace(clients={**new.clients, DRAWN: last})
    refused = sum(self.post.inbox.refused.values()) - before
    metrics = {**noted, **jax.device_get(metrics)}
    return Done(new, metrics, self.post.up, self.post.down, refused)

  def _check(self, came: int, drawn: int, asked: int) -> None:
    needed = min(1, asked) if self.least is None else min(self.least, drawn)
    if came < needed:
      raise TooFew(f'clients that answered in time: {came}; a round needs {needed}')

  def _tasks(
    self, state: State, cohort: Member, servers: dict[str, Any], asked: list[int]
  ) -> dict[int, bytes]:
    """Returns client id -> what it is asked."""
    chance = dict(zip(cohort.id.tolist(), cohort.chance.tolist(), strict=True))
    told = jax.device_get(Told(state.round, state.params, servers))
    last = state.clients[DRAWN]
    return {i: self.plan.form.ask(Asked(told, int(last[i]), chance[i])) for i in asked}

  def _plain(
    self, state: State, cohort: Member, servers: dict[str, Any], asked: list[int]
  ) -> tuple[Given, set[int], np.ndarray]:
    """Returns (what the clients have made, ids of those who answered, examples [C])."""
    form, round = self.plan.form, int(state.round)
    tasks = self._tasks(state, cohort, servers, asked)
    bodies = self.post.exchange(TRAIN, UPDATE, round, tasks, form.bytes_up, self._timeout)
    read: dict[int, Answer] = {}
    for i, body in bodies.items():
      try:
        read[i] = form.read(body, int(self._seed), round, i)
      except ValueError as error:
        self.post.unsound(i, round, str(error))
    rows = [read.get(int(i)) for i in cohort.id]
    message, metrics = form.empty()
    message = _stacked([None if x is None else x.message for x in rows], message)
    metrics = _stacked([None if x is None else x.metrics for x in rows], metrics)
    fine = np.array([x is not None and x.fine for x in rows])
    counts = np.array([0 if x is None else x.examples for x in rows], np.int32)
    return Given(message, fine, metrics), set(read), counts

  def _masked(
    self, state: State, cohort: Member, servers: dict[str, Any], asked: list[int]
  ) -> tuple[Given, set[int], np.ndarray]:
    """Returns as `_plain`, where the message is the sum, by the protocol of secure aggregation."""
    sealing, round = self.plan.sealing, int(state.round)
    names = [self._kit.clients[i] for i in asked]
    identities = [self._kit.public[name] for name in names]
    salt = secrets.token_bytes(32)
    name = secure.session_name(self.post.run, round, salt)
    try:
      session = sealing.session(name, len(asked), None, identities)  # type: ignore[union-attr]
    except BelowThreshold as error:
      raise TooFew(str(error)) from error
    about = json.dumps({'salt': salt.hex(), 'slots': asked, 'threshold': session.threshold})
    tasks = self._tasks(state, cohort, servers, asked)
    ends = time.monotonic() + self._timeout
    kinds = list(protocol.rounds(session))

    def ask(kind: Kind, inbox: dict[int, bytes]) -> dict[int, bytes]:
      first = kind == Kind.ADVERTISE
      left = max(0.1, ends - time.monotonic())
      turn = kinds.index(kind)
      share = _TRAINING if first else 1 / (len(kinds) - turn)
      bodies = {asked[slot]: body for slot, body in inbox.items()}
      if first:
        bodies = {i: _with(about.encode(), tasks[i]) for i in asked}
      most = secure.limit(session, kind)
      kind_name = TRAIN if first else kind.name
      taken = self.post.exchange(kind_name, kind.name, round, bodies, most, share * left)
      return {asked.index(i): body for i, body in taken.items()}

    try:
      collected = secure.collect(session, ask)
    except (BelowThreshold, ProtocolError) as error:
      raise TooFew(str(error)) from error
    for slot, why in collected.refused:
      self.post.unsound(asked[slot], round, why)
    came = {asked[slot] for slot in collected.survivors}
    message = sealing.message(collected.total)  # type: ignore[union-attr]
    fine = np.isin(cohort.id, list(came))
    return Given(message, fine, {}), came, np.zeros(len(cohort.id), np.int32)


def _with(about: bytes, task: bytes) -> bytes:
  """Returns a task under masks: what the session is, then what is asked."""
  return len(about).to_bytes(4, 'little') + about + task


def without(body: bytes) -> tuple[bytes, bytes]:
  """Returns the two parts of a task under masks; the reverse of `_with`."""
  length = int.from_bytes(body[:4], 'little')
  return body[4 : 4 + length], body[4 + length :]


def _stacked(rows: list[Any], like: Any) -> Any:
  """Returns rows as one stack [C, ...]; `like` where there is none."""
  return jax.tree.map(lambda *x: np.stack(x), *[like if x is None else x for x in rows])


def first_state(plan: Plan, params: Any, population: Population, seed: int, root: Any) -> State:
  """Returns the state before the first round."""
  options = engine.compiler_options(jax.default_backend()) or None
  first = keys.jit(functools.partial(engine.first_state, plan.setting), compiler_options=options)
  state: State = first(params, population, np.uint32(seed), root)
  last = np.full(plan.setting.shape.num_clients, NEVER, np.int32)
  return state._replace(clients={**state.clients, DRAWN: last})


def bare(state: State) -> State:
  """Returns the state as the stages know it."""
  return state._replace(clients={k: x for k, x in state.clients.items() if k != DRAWN})
