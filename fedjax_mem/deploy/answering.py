"""The client's side of a job: what it builds of it, and its answers. Runs in the job's process.

A client takes the job only if the server's key has signed it and it keeps what the client demands;
what the configuration names is built under `validate.only_from`. Under masks or local noise it
answers each round once, and notes on its disk that it has before the answer leaves.
"""

import functools
import json
import pathlib
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np

from fedjax_mem import engine
from fedjax_mem.config import build
from fedjax_mem.config.load import load_config
from fedjax_mem.core import Member, keys, tree, validate
from fedjax_mem.deploy import data, job, messages, rounds, secure, trust
from fedjax_mem.deploy.engine import write_json
from fedjax_mem.deploy.form import Asked, work
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.memory import NEVER, Memory
from fedjax_mem.deploy.messages import Header, Refused
from fedjax_mem.runner import devices
from fedjax_mem.runner.ledgers import open_ledgers
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind

HELLO, READY, END, BYE = 'hello', 'ready', 'end', 'bye'
_KINDS = {kind.name: kind for kind in Kind}
_LONGEST = 3600.0  # most seconds of a session, whatever the server says of its rounds


class Declined(ValueError):
  """The client does not answer this message; the server counts it as dropped out."""


def open(place: Mapping[str, Any], payload: bytes) -> 'Answerer':
  """Returns the client's side of a job, ready to train.

  Args:
    place: what this machine's command says: `kit`, `outcome` (paths), `data`, `data_dir`
      and `pin` (paths or None), `require`, `allow` and `repeatable`.
    payload: the job.

  Raises:
    Refused: the job is not what this client accepts; nothing of it was imported.
  """
  kit = Kit.open(place['kit'], 'client')
  try:
    return Answerer(place, kit, job.read(payload, kit.public[messages.SERVER]))
  except Refused:
    raise
  except ValueError as error:  # bad input of either side, in one line
    raise Refused(' '.join(str(error).split())) from error


class _Sealed(NamedTuple):
  """A session of secure aggregation that is under way."""

  round: int
  party: secure.Party
  values: np.ndarray
  timer: threading.Timer


class Answerer:
  """Answers the server's messages in one job."""

  def __init__(self, place: Mapping[str, Any], kit: Kit, given: job.Job):
    """Checks, builds, plans and compiles; raises `ValueError` for what this client refuses."""
    devices.prepare(1)
    devices.start()
    self._place, self._kit, self._job = place, kit, given
    self._allow = tuple(place['allow'])
    self._id = self._number()
    config, expected = given.config, given.expected
    trust.check_noise_seed(config, place['repeatable'])
    if place['pin']:
      trust.check_pin(config, load_config(place['pin']))
    with validate.only_from(self._allow):
      arrays = self._read()
      parts = data.parts_of(config, expected, self._place['data_dir'])
      trust.check_required(parts.layers, place['require'])
      key = keys.role_key(keys.layer_key(keys.seed_key(config.seed), 0, 'model'), 'init')
      params = parts.model.init(key)
      self._plan = job.plan(parts.layers, params, expected, arrays, parts.preprocess)
    self._layers, self._count = parts.layers, len(arrays['y'])
    # Noise that this client adds itself protects it from the server: it counts its own releases.
    counts = np.full(expected.num_clients, expected.most)
    ledgers = open_ledgers(config, self._plan.setting.layers, counts, self._plan.setting.specs)
    self._ledgers = {} if ledgers is None else ledgers.local
    self._arrays = jax.device_put(arrays)
    seed = config.noise_seed
    self._root = keys.fresh_root() if seed is None else np.asarray(keys.open_root(seed))
    self._seed = np.uint32(config.seed)
    self._first = self._start(params)
    self._take()
    self._memory = Memory(kit.work / 'runs', given.run)
    self._kept: dict[int, Any] = {}  # round -> states after it, in memory too
    self._turns: set[str] = set()
    self._sealed: _Sealed | None = None
    self._body = self._compiled(params)
    self._lock = threading.Lock()

  def _take(self) -> None:
    """Notes the run in which this machine's command takes part; it is one alone.

    Each run has a budget of its own: a server could otherwise begin run after run.
    """
    path = self._kit.taken
    with filelock.FileLock(path.with_suffix('.lock')):  # several jobs may open at once
      if path.exists() and json.loads(path.read_text()) != self._job.run:
        raise Refused(
          'the server has begun another run than the one that this client takes part in: start the '
          'client again to take part in that one, too.'
        )
      write_json(path, self._job.run)

  def _number(self) -> int:
    """Returns the client's id, by its kit; the job's names and their number must be those."""
    if self._job.clients != self._kit.clients:
      raise Refused(
        f'the job must be for the clients {", ".join(self._kit.clients)} of this kit, got '
        f'{", ".join(self._job.clients)}: get the kit of this deployment.'
      )
    if self._job.expected.num_clients != len(self._kit.clients):
      raise Refused(
        f'the job must count {len(self._kit.clients)} clients, those of this kit, got '
        f'{self._job.expected.num_clients}: ask who runs the server.'
      )
    return self._kit.clients.index(self._kit.name)

  def _read(self) -> dict[str, np.ndarray]:
    """Returns the client's examples: its own, or its part of the configured data."""
    if self._place['data']:
      return dict(data.own(self._place['data'], self._job.expected))
    loaded = build.load_data(self._job.config, self._place['data_dir'])
    return dict(data.part_of(loaded, self._id, self._job.expected))

  def _start(self, params: Any) -> dict[str, Any]:
    """Returns the client's states before its first round."""
    options = engine.compiler_options(jax.default_backend()) or None  # as in a simulated run
    first = keys.jit(
      functools.partial(engine.first_rows, self._plan.setting), compiler_options=options
    )
    made: dict[str, Any] = jax.device_get(first(params, np.int32(self._id), self._seed, self._root))
    return made

  def _compiled(self, params: Any) -> Any:
    """Returns the compiled body: the first round is not slower than the others."""
    zeros = lambda like: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    servers = zeros(self._plan.form.servers)
    told = engine.Told(np.int32(0), jax.device_get(params), servers)
    options = engine.compiler_options(jax.default_backend()) or None
    body = keys.jit(functools.partial(work, self._plan.setting), compiler_options=options)
    jax.block_until_ready(body(*self._arguments(Asked(told, NEVER, 1.0), self._first)))
    return body

  def _arguments(self, asked: Asked, rows: Any) -> tuple[Any, ...]:
    me = Member(np.int32(self._id), np.True_, np.True_, np.float32(asked.chance))  # type: ignore[arg-type]
    return (asked.told, self._arrays, np.int32(self._count), me, rows, self._seed, self._root)

  def __call__(self, blob: bytes) -> bytes:
    """Returns the signed answer to a message of the server.

    Raises:
      Refused: the message is not of this job's server.
    """
    with self._lock, validate.only_from(self._allow):
      header, body = self._opened(blob)
      try:
        kind, answer = self._answered(header, body)
      except (Declined, BelowThreshold, ProtocolError) as error:
        self._forget()
        kind, answer = rounds.DECLINED, ' '.join(str(error).split()).encode()[:500]
    return messages.seal(self._kit.sign, header.reply(kind), answer)

  def _opened(self, blob: bytes) -> tuple[Header, bytes]:
    """Returns header and body of a message that the server has signed for this client, once."""
    try:
      envelope = messages.parse(blob)
      messages.verify(envelope, self._kit.public[messages.SERVER])
      header = envelope.header
      if (header.run, header.sender) != (self._job.run, messages.SERVER):
        raise messages.Unfit('stale', 'it is of another run')
      if header.to != self._kit.name or header.turn in self._turns:
        raise messages.Unfit('replayed', 'it came before, or is for another')
    except messages.Unfit as error:
      raise Refused(
        f"a message must be signed by this deployment's server, for this run and once, got one "
        f'that is {error}: stop, and ask who runs the server.'
      ) from None
    self._turns.add(header.turn)
    return header, envelope.body

  def _answered(self, header: Header, body: bytes) -> tuple[str, bytes]:
    """Returns (kind, body) of the answer."""
    if header.kind == HELLO:
      stated, most = json.loads(body)['stated'], self._job.expected.most
      config, layers = self._job.config, self._layers
      try:
        data.check_counts(config, layers, self._count, stated, most)
      except ValueError as error:
        raise Refused(' '.join(str(error).split())) from error
      return READY, b''
    if header.kind == END:
      self._forget()
      said = json.loads(body)
      line = '; '.join((str(said['line']), *self._statements()))
      write_json(pathlib.Path(self._place['outcome']), {'status': 'finished', 'line': line})
      return BYE, b''
    if header.kind == rounds.TRAIN:
      return self._train(header.round, body)
    if header.kind in _KINDS:
      return header.kind, self._sealing(header, body)
    raise Declined(f'messages of kind {header.kind!r} are not known')

  def _train(self, round: int, body: bytes) -> tuple[str, bytes]:
    """Returns the update, or under masks the first message of the session."""
    self._forget()
    about, task = rounds.without(body) if self._plan.sealing else (b'', body)
    try:
      asked = self._plan.form.asked(task)
    except ValueError as error:
      raise Declined(str(error)) from error
    if int(asked.told.round) != round or not 0 <= round < self._job.config.rounds:
      raise Declined(f'round {round + 1} is not of this run')
    session = self._session(round, about) if self._plan.sealing else None
    if self._plan.spent:
      self._spend(round)
    rows = self._rows(asked.last)
    made, codes = jax.device_get(self._body(*self._arguments(asked, rows)))
    kept = made.rows if made.fine and made.sound else rows
    self._kept = {asked.last: rows, round: kept}
    self._memory.save(round, kept, asked.last)
    write_json(self._kit.standing, round + 1)
    if session is None:
      return rounds.UPDATE, self._plan.form.answer(made, codes, self._count)
    slot, opened = session
    values = self._plan.sealing.values(made.message)  # type: ignore[union-attr]
    party = secure.Party(opened, slot, secure.identity(self._kit.sign))
    seconds = min(2 * self._job.config.deploy.round_timeout, _LONGEST)
    timer = threading.Timer(seconds, self._expire, (party,))
    timer.daemon = True
    timer.start()
    self._sealed = _Sealed(round, party, values, timer)
    return Kind.ADVERTISE.name, party.answer(Kind.ADVERTISE, b'', lambda: values)

  def _spend(self, round: int) -> None:
    """Notes a round as answered; raises `Declined` if it was, or if the budget is spent."""
    memory = self._memory
    with memory.held():
      if round <= memory.answered:
        raise Declined(f'round {round + 1} was answered before: its number is used up')
      if any(memory.times >= x.allowed for x in self._ledgers.values()):
        raise Declined(f'the budget is spent after {memory.times} rounds')
      memory.note(round)

  def _session(self, round: int, about: bytes) -> tuple[int, Any]:
    """Returns (this client's slot, session) of what the server says of it."""
    try:
      said = json.loads(about)
      slots, salt, threshold = said['slots'], bytes.fromhex(said['salt']), said['threshold']
      if sorted(set(slots)) != slots or not all(type(i) is int for i in slots):
        raise ValueError('its clients are not in order')
      names = [self._kit.clients[i] for i in slots if i >= 0]
      public = [self._kit.public[name] for name in names]
      sealing: Any = self._plan.sealing
      name = secure.session_name(self._job.run, round, salt)
      opened = sealing.session(name, len(slots), threshold, public)
      return slots.index(self._id), opened
    except (ValueError, KeyError, IndexError, TypeError) as error:
      raise Declined(f'the session of secure aggregation is not sound ({error})') from error

  def _sealing(self, header: Header, body: bytes) -> bytes:
    """Returns the next message of the session under way."""
    held = self._sealed
    if held is None or held.round != header.round:
      raise Declined(f'no session of round {header.round + 1} is under way')
    answer = held.party.answer(_KINDS[header.kind], body, lambda: held.values)
    if _KINDS[header.kind] == Kind.UNMASK:
      self._forget()
    return answer

  def _forget(self) -> None:
    """Erases the secrets of a session, if one is under way."""
    held, self._sealed = self._sealed, None
    if held is not None:
      held.timer.cancel()
      held.party.erase()
      held.values[:] = 0

  def _statements(self) -> list[str]:
    """Returns what this client's own noise guarantees it, a text for each layer of noise."""
    times = self._memory.times
    entries = {name: x.entry.guarantee(min(times, x.allowed)) for name, x in self._ledgers.items()}
    return [f'{name}: {x._replace(rounds=times)}' for name, x in entries.items()]

  def _expire(self, party: secure.Party) -> None:
    """Erases a session that the server has not ended; the next one may be under way by then."""
    with self._lock:
      if self._sealed is not None and self._sealed.party is party:
        self._forget()

  def _rows(self, last: int) -> Any:
    """Returns the states after round `last`; the first ones where there are none."""
    if last == NEVER or not jax.tree.leaves(self._first):
      return self._first
    kept = self._kept.get(last)
    kept = self._memory.load(last, tree.shapes(self._first)) if kept is None else kept
    if kept is None:  # for the log: another disk, or a server that went back by several rounds
      print(f'the states after round {last + 1} are not here: this client begins with new ones')
    return self._first if kept is None else kept
