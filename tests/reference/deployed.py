"""A deployment without its engine: kits by hand, and a link of function calls in one process."""

import copy
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem.config.load import load_config
from fedjax_mem.core import Population
from fedjax_mem.deploy import answering, driving, job, messages, rounds, serving
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.runner import ledgers
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import get_ready

NAMES = ('a', 'b', 'c', 'd', 'e')
# Logistic: with weights that are not 1 the simulation multiplies and adds in one step (FMA) where
# it is compiled with all optimizations. That is one bit of a sum, and rounding at random would make
# a whole step of it on larger models.
EXPERIMENT = """
version = 1
name = 'deployed'
rounds = 5
[data]
name = 'digits'
num_clients = 3
partition = 'iid'
[model]
name = 'logistic'
[client]
batch_size = 20
learning_rate = 0.1
[selection]
cohort_size = 3
[weighting]
name = 'equal'
[deploy]
round_timeout = 5.0
"""
RAGGED = ("data.partition='dirichlet'", 'data.alpha=1.0', "weighting.name='examples'")
CENTRAL = (
  "stages=[{use='central', options={l2_clip_norm=1.0, noise_multiplier=0.5}}]",
  'privacy.delta=1e-3',
  'weighting.options.divisor=3',
)
LOCAL = (
  "stages=[{use='local', options={l2_clip_norm=1.0, noise_multiplier=4.0}}]",
  'privacy.delta=1e-3',
  'weighting.options.divisor=3',
)
FOUR = ('data.num_clients=4', 'selection.cohort_size=4')
MASK = ("stages=[{use='integers', options={value_range=4.0}}, {use='mask'}]", *FOUR)
SEEDED = 'noise_seed=3'


def experiment(folder, *overrides):
  """Returns the small experiment, with overrides 'section.key=value'."""
  path = Path(folder) / 'experiment.toml'
  path.write_text(EXPERIMENT)
  return load_config(path, overrides)


def kits(folder, names):
  """Writes the kits of a server and its clients; returns name -> folder."""
  signs = {name: Ed25519PrivateKey.generate() for name in ('server', *names)}
  public = {name: key.public_key().public_bytes_raw().hex() for name, key in signs.items()}
  made = {}
  for name, key in signs.items():
    made[name] = path = Path(folder) / 'kits' / name
    path.mkdir(parents=True)
    role = 'server' if name == 'server' else 'client'
    facts = {'role': role, 'name': name, 'clients': names, 'host': 'localhost'}
    facts |= {'port': 1, 'admin_port': 2, 'version': '1'}
    (path / 'kit.json').write_text(json.dumps(facts))
    (path / 'keys.json').write_text(json.dumps(public))
    pem = (
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.NoEncryption(),
    )
    (path / 'sign.key').write_bytes(key.private_bytes(*pem))
  return made


class Wire:
  """A link of function calls.

  Attributes:
    clients: name -> what answers its messages.
    order: the order in which clients answer; None: that in which they are asked.
    change: (name, message, answer) -> the answer that arrives, None: none does.
    before: called with the messages of each exchange before they are sent.
    log: (name, message, answer as it arrived) of all exchanges.
    refusals: what clients have refused.
    stop: whether the job is to end.
  """

  def __init__(self, clients):
    self.clients, self.order, self.log = dict(clients), None, []
    self.change = lambda name, blob, answer: answer
    self.before = lambda blobs: None
    self.refusals, self.stop = [], False

  def exchange(self, blobs, timeout):
    self.before(blobs)
    answers = {}
    for name in self.order or blobs:
      if name not in self.clients or name not in blobs:
        continue
      try:
        answer = self.change(name, blobs[name], self.clients[name](blobs[name]))
      except messages.Refused as error:
        self.refusals.append((name, str(error)))
        continue
      self.log.append((name, blobs[name], answer))
      if answer is not None:
        answers[name] = answer
    return answers

  def connected(self):
    return frozenset(self.clients)

  def stopped(self):
    return self.stop

  def kinds(self):
    """Returns (client, kind, round) of all messages to clients."""
    headers = [(name, messages.parse(blob).header) for name, blob, _ in self.log]
    return [(name, x.kind, x.round) for name, x in headers]


class Deployment:
  """A run's folder, the kits, and what the commands of all machines say.

  Attributes:
    config: the experiment.
    kits: name -> folder.
    folder: the run's.
    ended: states after the last round, of jobs that have finished.
  """

  def __init__(self, folder, config):
    self.folder_of_all, self.config = Path(folder), config
    self.kits = kits(folder, NAMES[: config.data.num_clients])
    self.repeatable = config.noise_seed is not None
    self.server = Kit.open(self.kits['server'], 'server')
    self.folder = driving.begin(config, self.server, self.folder_of_all, None, self.repeatable)
    self.payload, self.ended = self.job(), []

  def job(self, **changes):
    """Returns the signed job, with other fields if given."""
    ready = self.ready
    said = self.folder.manifest['run_id'], self.folder.config, Expected.of(ready.parts.data)
    return job.write(self.server.sign, job.Job(*said, self.server.clients)._replace(**changes))

  @functools.cached_property
  def ready(self):
    """The parts of the run at the server."""
    return get_ready(job.looped(self.config), None, {})

  def place(self, name, **changes):
    """Returns what the command of a client's machine says."""
    work = self.kits[name] / 'work'
    work.mkdir(exist_ok=True)
    place = {'kit': str(self.kits[name]), 'outcome': str(work / 'outcome.json')}
    place |= {'data': None, 'data_dir': None, 'pin': None, 'require': None, 'allow': []}
    return place | {'repeatable': self.repeatable} | changes

  def client(self, name, **changes):
    """Returns a client's side of the job, as a process of its own opens it."""
    return answering.open(self.place(name, **changes), self.payload)

  def forget(self):
    """Removes what the clients keep, as if they had not taken part."""
    for path in self.kits.values():
      shutil.rmtree(path / 'work', ignore_errors=True)

  def clients(self, *names):
    """Returns the sides of clients, of all if none is named; all have one plan and one program."""
    with pytest.MonkeyPatch.context() as patch:
      made = self.planned
      patch.setattr(job, 'plan', lambda *_: made)
      if hasattr(self, '_body'):
        patch.setattr(answering.Answerer, '_compiled', lambda *_: self._body)
      clients = {}
      for name in names or self.server.clients:
        clients[name] = self.client(name)
        self._body = clients[name]._body
        patch.setattr(answering.Answerer, '_compiled', lambda *_: self._body)
      return clients

  @functools.cached_property
  def planned(self):
    return serving.planned(self.ready)

  def serve(self, wire, anew=False):
    """Runs a job of the server; returns its outcome.

    Args:
      wire: its link.
      anew: whether all parts are built, as a process does; else those of this object serve again,
        with ledgers of their own.
    """
    places = driving.Place.within(self.folder_of_all)
    place = {'kit': str(self.kits['server']), 'run': str(self.folder.path), 'data_dir': None}
    for path in places:
      path.unlink(missing_ok=True)
    place |= {name: str(path) for name, path in places._asdict().items()}

    def again(config, *rest):
      ready = self.ready
      sizes, specs = ready.parts.data.counts, ready.sim.setting.specs
      opened = ledgers.open_ledgers(config, ready.parts.layers, sizes, specs)
      return ready._replace(ledgers=opened)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        serving, 'finish', lambda ready, folder, state, records: self.ended.append(state)
      )
      if not anew:
        patch.setattr(serving, 'get_ready', again)
        patch.setattr(serving, 'planned', lambda ready: self.planned)
      return serving.serve(place, wire)

  def copy(self, folder):
    """Returns the same run in another folder, as it is there now; its clients are the same."""
    made = copy.copy(self)
    made.ended, made.folder_of_all = [], Path(folder)
    made.folder = RunFolder(Path(shutil.copytree(self.folder.path, Path(folder) / 'run')))
    return made

  def records(self):
    lines = (self.folder.path / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  def said(self):
    """Returns the lines of the server's log."""
    path = self.folder.path / 'deploy.log'
    return path.read_text().splitlines() if path.exists() else []

  def manifest(self):
    return RunFolder(self.folder.path).manifest


class Bare:
  """Rounds at the server without a run's folder: no ledger, no checkpoints, no records.

  Attributes:
    lines: of the log, but for those that count the answers of each exchange.
    counted: those.
  """

  def __init__(self, deployment, wire, least=None):
    config, ready = deployment.config, deployment.ready
    self.ready, self.lines, self.counted = ready, [], []
    self.plan, kit = deployment.planned, deployment.server
    self.post = rounds.Post(kit, deployment.folder.manifest['run_id'], wire, self._say)
    held = ready.source.population
    self.rounds = rounds.Rounds(
      self.plan,
      Population({}, np.zeros(0, np.int32), held.start, held.count),
      self.post,
      kit,
      seed=config.seed,
      root=ready.sim.root,
      timeout=5.0,
      least=least,
    )
    self.wire, self.state = (
      wire,
      rounds.first_state(self.plan, ready.parts.params, held, config.seed, ready.sim.root),
    )

  def _say(self, line):
    counts = re.fullmatch(r'round \d+: \w+: \d+ of \d+ in [\d.]+ s', line)
    (self.counted if counts else self.lines).append(line)

  def run(self, number=1):
    """Runs rounds; returns the last one."""
    for _ in range(number):
      done = self.rounds.run(self.state, self.rounds.draw(self.state))
      self.state = done.state
    return done


def simulated(ready, rounds):
  """Returns (state, metrics of the last round) of the same rounds in a simulation."""
  state = ready.sim.init(ready.parts.params)
  for _ in range(rounds):
    state, metrics = ready.sim.run(state, 1)
  return jax.device_get(state), metrics


def unasked(clients):
  """Has clients forget which rounds they have answered, as tests that share them need it."""
  for client in clients:
    client._memory._mark.unlink(missing_ok=True)
    client._memory.answered, client._memory.times = -1, 0


def apart(one, other):
  """Returns the largest difference of two trees of arrays."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()) for a, b in pairs)
