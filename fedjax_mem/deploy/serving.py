"""The server's side of a job: rounds, the ledger, checkpoints and records of one run's folder.

The order of a round is: it is drawn; the ledger is charged, on the disk; clients are asked; the
server steps; a checkpoint is saved; then the record is published. So a server that is killed has
never published a round that its ledger does not count, and a round that it runs again had published
nothing: its noise protects one result. Under masks or local noise what clients send is a release by
itself: a round that was begun and has no checkpoint is used up, and the next number is run.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedjax_mem.core import Population, State, tree
from fedjax_mem.deploy import enrolment, job, rounds
from fedjax_mem.deploy.answering import BYE, END, HELLO, READY
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.engine import write_json
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.rounds import DRAWN, Done, Link, Post, Rounds, TooFew
from fedjax_mem.report.tracker import MetricsWriter, read_metrics, truncate_after
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner import restoring, secret
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.ending import finish
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import Ready, get_ready, keeps_root
from fedjax_mem.runner.records import of_run

FINISHED, AGAIN = 'finished', 'again'
TRIES = 4  # a round, and three more tries
_OPENING = 120.0  # most seconds in which clients build what the job describes
_LOCK = 20.0  # seconds in which a job that was killed frees the folder


class Failed(RuntimeError):
  """The run cannot go on; the message says why, and that a checkpoint is kept."""


def serve(place: Mapping[str, Any], link: Link) -> str:
  """Runs the rounds that are left; returns 'finished', or 'again' if another job is to go on.

  Args:
    place: what this machine's command says: `kit`, `run`, `work` (paths) and `data_dir`.
    link: carries the messages.

  Raises:
    Failed: the run cannot go on.
  """
  kit, folder = Kit.open(place['kit'], 'server'), RunFolder(pathlib.Path(place['run']))
  with _locked(folder):
    config = job.looped(folder.config)
    ready = get_ready(config, place['data_dir'], {}, folder.start())
    if keeps_root(ready):
      root = secret.read(folder.path, folder.manifest.get('run_id'))
      ready = ready._replace(sim=ready.sim.with_root(root))
    return _Server(place, kit, folder, ready, link).go()


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
  """Holds the folder, as soon as the job before has gone."""
  ends = time.monotonic() + _LOCK
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(folder.locked())
        break
      except ValueError:
        if time.monotonic() > ends:
          raise
        time.sleep(0.2)
    yield


def planned(ready: Ready) -> job.Plan:
  """Returns the plan of a run's rounds, checked.

  Raises:
    IncompatibleStages: layers that do not work between processes.
  """
  parts = ready.parts
  batch = {name: x[:1] for name, x in parts.data.arrays.items()}
  return job.plan(parts.layers, parts.like, Expected.of(parts.data), batch, parts.data.preprocess)


class _Server:
  """One job of the server."""

  def __init__(
    self, place: Mapping[str, Any], kit: Kit, folder: RunFolder, ready: Ready, link: Link
  ):
    self._place, self._kit, self._folder, self._ready = place, kit, folder, ready
    self._link, self._config, self._ledgers = link, ready.config, ready.ledgers
    self._plan = planned(ready)
    self._post = Post(kit, folder.manifest['run_id'], link, self._say)
    held = ready.source.population
    sizes = Population({}, np.zeros(0, np.int32), held.start, held.count)  # type: ignore[arg-type]
    self._rounds = Rounds(
      self._plan,
      sizes,
      self._post,
      kit,
      seed=self._config.seed,
      root=ready.sim.root,
      timeout=self._config.deploy.round_timeout,
      least=self._config.deploy.min_clients,
    )
    self._records = of_run(self._config, ready.parts, ready.sim, ready.ledgers)
    self._checkpoints = Checkpoints(
      folder.path / 'checkpoints',
      self._config.execution.keep_checkpoints,
      private=ready.sim.claims,
      run_id=folder.manifest['run_id'],
    )
    self._metrics, self._pending = folder.path / 'metrics.jsonl', folder.path / 'pending.json'
    self._noted: list[str] | None = None  # the clients that this machine's command knows of

  def go(self) -> str:
    """Runs the rounds that are left."""
    state, records = self._restore()
    self._hello()
    with contextlib.closing(self._checkpoints), MetricsWriter(self._metrics) as writer:
      last = self._go(state, records, writer)
    if last is None:
      return AGAIN
    self._end(records)
    finish(self._ready, self._folder, last, records)
    return FINISHED

  def _go(self, state: State, records: list[dict[str, Any]], writer: MetricsWriter) -> State | None:
    """Returns the state after the last round; None if another job is to go on."""
    total, tries = self._config.rounds, 0
    while int(state.round) < total:
      if self._leave():
        return None
      if self._ledgers and not self._ledgers.room(int(state.round), total):
        break
      began = time.perf_counter()
      drawn = self._begin(state)
      try:
        done = self._rounds.run(state, drawn)
      except TooFew as error:
        tries += 1
        self._say(f'round {int(state.round) + 1}: {error} (try {tries} of {TRIES})')
        if self._plan.spent:
          state = self._lose(state, records, writer)
        if self._leave():
          return None
        if tries == TRIES:
          self._checkpoints.save(self._kept(state))
          raise Failed(
            f'{str(error).rstrip(".")}, {TRIES} times in a row; the checkpoint of round '
            f'{int(state.round)} is kept: start the clients that are missing.'
          ) from error
        continue
      tries, state = 0, done.state
      self._publish(done, records, writer, time.perf_counter() - began)
    return state

  def _leave(self) -> bool:
    """Returns whether this job is to end before the next round."""
    self._reachable()
    return self._link.stopped() or pathlib.Path(self._place['rejoin']).exists()

  def _reachable(self) -> None:
    """Notes for this machine's command which clients the job can still reach.

    One that was killed and came back is connected to the engine again, and not to this job.
    """
    here = sorted(self._link.connected())
    if here != self._noted:
      write_json(pathlib.Path(self._place['joined']), here)
      self._noted = here

  def _begin(self, state: State) -> Any:
    """Returns the draw of the next round, which is charged, on the disk."""
    drawn = self._rounds.draw(state)
    cohort, number = drawn[0], int(state.round) + 1
    if self._ledgers:
      self._ledgers.charge(number, 1, np.where(cohort.real, cohort.id, -1)[None])
      self._ledgers.save(self._folder.path)
    if self._plan.spent:
      write_json(self._folder.path / 'begun.json', number)
    return drawn

  def _publish(
    self, done: Done, records: list[dict[str, Any]], writer: MetricsWriter, seconds: float
  ) -> None:
    """Saves a checkpoint of a round that has ended, and then its record."""
    number, state = int(done.state.round), done.state
    rows = {name: np.asarray(x)[None] for name, x in done.metrics.items()}
    (record,) = self._records.make(number, rows, seconds)
    record |= {'bytes_up': done.up, 'bytes_down': done.down, 'refused': done.refused}
    if self._plan.form.quiet:  # no client says how many it has, or that it sends zeros
      del record['examples']
      record.pop('zeroed', None)
    if number % self._config.evaluation.every == 0 or number == self._config.rounds:
      self._records.score(record, self._ready.evaluate(state.params))
    self._records.mark(record)
    write_json(self._pending, record)
    if not bool(done.metrics['finite']):
      raise Failed(
        f"the server's parameters are not finite after round {number}; the checkpoint of round "
        f'{number - 1} is kept. A smaller client.learning_rate or server.learning_rate is the '
        'usual remedy.'
      )
    self._checkpoints.save(self._kept(state))
    self._write(record, records, writer)

  def _write(
    self, record: dict[str, Any], records: list[dict[str, Any]], writer: MetricsWriter
  ) -> None:
    writer.write(record)
    records.append(record)
    said = self._records.coverage()
    if said and said['coverage'] != self._folder.manifest.get('coverage'):
      self._folder.note(**said)
    if self._ledgers:
      self._ledgers.finish(record['round'])

  def _lose(self, state: State, records: list[dict[str, Any]], writer: MetricsWriter) -> State:
    """Returns the state after a round that was begun and is used up: nothing else has changed."""
    number = int(state.round) + 1
    record: dict[str, Any] = {'round': number, 'clients': 0, 'lost': True}
    if self._ledgers:
      record |= self._ledgers.metrics(number)
    self._records.mark(record)
    write_json(self._pending, record)
    state = state._replace(round=np.int32(number))  # type: ignore[arg-type]
    self._checkpoints.save(self._kept(state))
    self._write(record, records, writer)
    return state

  def _kept(self, state: State) -> State:
    """Returns the state as it is kept on the disk."""
    return self._ready.sim.without_noise(state)

  def _restore(self) -> tuple[State, list[dict[str, Any]]]:
    """Returns the state of the newest sound checkpoint and the records up to it."""
    sim, held = self._ready.sim, self._ready.source.population
    first = rounds.first_state(
      self._plan, self._ready.parts.params, held, self._config.seed, sim.root
    )
    state, said = first, self._folder.manifest
    refused: list[str] = []
    if self._checkpoints.numbers():
      state, refused = self._checkpoints.restore(tree.shapes(self._kept(first)))
      if sim.claims:
        table = state.clients[DRAWN]
        state = sim.with_noise(rounds.bare(state))
        state = state._replace(clients={**state.clients, DRAWN: table})
    done = int(state.round)
    self._check_released(done)
    records = truncate_after(self._metrics, done)
    if self._ledgers:
      published = records[-1]['round'] if records else 0
      self._ledgers.resume(self._folder.path, done, published)
    with MetricsWriter(self._metrics) as writer:
      pending = self._unpublished(done, records)
      if pending:
        self._write(pending, records, writer)
      begun = self._folder.path / 'begun.json'
      if self._plan.spent and begun.exists() and json.loads(begun.read_text()) == done + 1:
        self._say(f'round {done + 1}: begun before, and used up')
        state = self._lose(state, records, writer)
    self._folder.note(
      warnings=list(dict.fromkeys([*said['warnings'], *refused, *restoring.lost(records, done)])),
      resumed=[*said.get('resumed', []), done] if done else said.get('resumed', []),
      status='running',
    )
    return state, records

  def _check_released(self, done: int) -> None:
    """Raises `Failed` if a round would be run again that is published, under a claim of privacy.

    Other clients might answer in time, and the difference of two sums with one noise has none.
    """
    if not self._ready.sim.claims or not self._metrics.exists():
      return
    last = max((x['round'] for x in read_metrics(self._metrics)), default=0)
    if last > done:
      raise Failed(
        f'the newest sound checkpoint must be that of round {last}, which is published, got that '
        f'of round {done}: its noise must not protect a second sum. Put the checkpoint back, or '
        'begin another run.'
      )

  def _unpublished(self, done: int, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of the checkpoint, if the server was killed before it was published."""
    if not self._pending.exists() or (records and records[-1]['round'] >= done):
      return None
    pending: dict[str, Any] = json.loads(self._pending.read_text())
    return pending if pending['round'] == done else None

  def _hello(self) -> None:
    """Waits until the clients of the job have built it, and notes who has."""
    gone, names = enrolment.revoked(self._kit), self._kit.clients
    counts = np.asarray(self._ready.parts.data.counts)
    here = self._link.connected() - set(gone)
    asked = {
      i: json.dumps({'stated': int(counts[i])}).encode() for i, x in enumerate(names) if x in here
    }
    ready = self._post.exchange(HELLO, READY, -1, asked, 0, _OPENING)
    self._reachable()
    self._say(f'clients: {", ".join(names[i] for i in ready) or "none"}')

  def _end(self, records: list[dict[str, Any]]) -> None:
    """Tells the clients that the run has ended, and states what it has cost."""
    if self._ledgers:
      self._ledgers.save(self._folder.path)
      self._folder.note(**spending.facts(self._ledgers, ended=True))
    done = records[-1]['round'] if records else 0
    line = f'the run has ended after round {done}'
    body = json.dumps({'status': FINISHED, 'line': line}).encode()
    here = self._link.connected()
    ids = {i: body for i, name in enumerate(self._kit.clients) if name in here}
    self._post.exchange(END, BYE, -1, ids, 0, 10.0)

  def _say(self, line: str) -> None:
    """Writes a line into the run's log."""
    stamp = time.strftime('%Y-%m-%dT%H:%M:%S')
    with (self._folder.path / 'deploy.log').open('a', encoding='utf-8') as file:
      file.write(f'{stamp} {line}\n')
