"""The server: selects clients, checks who sent what, aggregates, and keeps the global model."""

import asyncio
import dataclasses
import logging
import math
import os
import secrets
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Message, keys, tree
from fedjax_mem.federated import compression, identity, workers
from fedjax_mem.federated import model as models
from fedjax_mem.federated.client import FederatedClient, FederatedUpdate, Place
from fedjax_mem.federated.config import AggregationStrategy, NotEnoughClients, ServerConfig
from fedjax_mem.federated.model import FederatedModel
from fedjax_mem.federated.privacy import ClientsAccountant
from fedjax_mem.federated.rules import Rule, rule_of
from fedjax_mem.federated.secure import EncryptedUpdate, SecureAggregator
from fedjax_mem.federated.selection import Chooser
from fedjax_mem.stages.compress import codec as codecs

_log = logging.getLogger('fedjax_mem.federated')


@dataclasses.dataclass(frozen=True)
class RoundReport:
  """What a round did.

  Attributes:
    round: from 0.
    participants: clients whose update counted.
    left_out: client id -> why its update did not.
    loss: mean over the participants' examples before training, in nats; no ε covers it.
    bytes: that the participants sent.
    epsilon: the largest over the clients; infinite where a client adds no noise.
  """

  round: int
  participants: tuple[str, ...]
  left_out: dict[str, str]
  loss: float
  bytes: int
  epsilon: float


class _Read(NamedTuple):
  """A sound update: who sent it, and what it decodes to."""

  client: FederatedClient
  update: FederatedUpdate
  message: Message


class FederatedServer:
  """The server of one run.

  Args:
    config: the run.
    global_model: what clients start from; see `as_model`. A module without parameters gets them
      when the first client is known, from one fixed seed.

  Raises:
    ValueError: no config or no model.
  """

  def __init__(self, config: ServerConfig, global_model: Any):
    if not isinstance(config, ServerConfig):
      raise ValueError(f'config must be a ServerConfig, got {config!r}.')
    self.config = config
    self.run_id = secrets.token_hex(16)
    self.round = 0
    self.reports: list[RoundReport] = []
    self._given = global_model
    self._model: FederatedModel | None = None
    if not models.needs_shape(global_model):
      self._model = models.as_model(global_model).copy()
    self._register = identity.Register()
    self._clients: dict[str, FederatedClient] = {}  # that run_round runs over
    self._members: dict[str, FederatedClient] = {}  # in the order they came
    self._states: dict[str, Any] | None = None
    self._chooser = Chooser(config)
    self._rule: Rule | None = rule_of(config)
    self._masks: SecureAggregator | None = None
    self._lock = threading.Lock()

  @property
  def privacy_accountant(self) -> ClientsAccountant:
    """What the clients have spent: the largest counts."""
    spenders = lambda: [x.privacy for x in self._members.values() if x.privacy is not None]
    return ClientsAccountant(lambda: spenders() if len(spenders()) == len(self._members) else ())

  def enrol(self, client_id: str, public_key: bytes) -> None:
    """Lets a client in by its Ed25519 public key.

    Raises:
      ValueError: no such key, or the id has another key already.
    """
    self._register.enrol(client_id, public_key)

  def register(self, client: FederatedClient) -> None:
    """Adds a client to those that `run_round` selects from, and enrols its key.

    Raises:
      ValueError: its id has another key, its model is another, or only enrolled keys are let in.
    """
    self._admit(client)
    self._clients[client.client_id] = client

  def unregister(self, client_id: str) -> None:
    """Removes a client from those that `run_round` selects from; its key stays enrolled.

    Raises:
      ValueError: there is no such client.
    """
    if client_id not in self._clients:
      raise ValueError(f'client_id must be registered, got {client_id!r}.')
    del self._clients[client_id]

  def _admit(self, client: FederatedClient) -> None:
    """Enrols a client that is in this process and gives it a number."""
    name = client.client_id
    if name not in self._register and self.config.require_enrolled:
      raise ValueError(
        f'client_id must be enrolled beforehand, got {name!r}: enrol(client_id, public_key).'
      )
    if self._model is None:
      shape, dtype = client.data.input_shape, client.data.input_dtype
      self._model = models.as_model(self._given, shape, dtype).copy()
    if not tree.same(self._model.params, client.model.params):
      raise ValueError(f'client {name!r} must have a model like the global one, got another.')
    if client.privacy is not None and self.config.selection_strategy != 'random':
      raise ValueError(
        f"selection_strategy must be 'random' for clients with privacy, got "
        f'{self.config.selection_strategy!r}, which looks at what they report.'
      )
    self._register.enrol(name, client.public_key)
    self._members[name] = client

  def _place(self, client: FederatedClient, private: bool) -> Place:
    number = list(self._members).index(client.client_id)
    kind = self.config.aggregation
    secure = self._masked if kind is AggregationStrategy.SECURE_AGGREGATION else None
    sgd = kind is AggregationStrategy.FEDERATED_SGD
    return Place(self.run_id, number, self.config.seed, sgd, private, secure)

  def select_clients(self, clients: Iterable[FederatedClient]) -> list[FederatedClient]:
    """Returns the clients of this round, at most `max_clients`; all are told of the run.

    Raises:
      NotEnoughClients: fewer than `min_clients` are there.
      ValueError: the run is over, an id is there twice, or as in `register`.
    """
    clients = list(clients)
    names = [x.client_id for x in clients]
    if len(set(names)) < len(names):
      raise ValueError(f'client_id must be distinct, got {sorted(names)!r}.')
    if self.round >= self.config.rounds:
      raise ValueError(f'rounds must be more than the {self.round} that are done; nothing is left.')
    self._enough(len(clients), 'clients')
    for client in clients:
      self._admit(client)
    private = any(x.config.privacy_config is not None for x in self._members.values())
    for client in clients:
      client.join(self._place(client, private), self.round, self.config.rounds)
    chosen = self._chooser.choose(clients, self._params(), self.round)
    if self.config.aggregation is AggregationStrategy.SECURE_AGGREGATION:
      threshold = max(self.config.min_clients, len(chosen) // 2 + 1)
      self._masks = SecureAggregator(len(chosen), threshold)
    return chosen

  def _enough(self, count: int, what: str) -> None:
    if count < self.config.min_clients:
      raise NotEnoughClients(
        f'{what} must be at least min_clients = {self.config.min_clients}, got {count}: the round '
        f'is not done and nothing has changed.'
      )

  def _current(self) -> FederatedModel:
    if self._model is None:
      raise ValueError('the global model must have parameters: select or register clients first.')
    return self._model

  def _params(self) -> Any:
    return self._current().params

  def _masked(self, payload: Any, client_id: str, weight: float) -> bytes:
    """Returns a client's update under its masks; called by the client."""
    with self._lock:
      if self._masks is None:
        raise ValueError('a round must begin with select_clients, got none.')
      sent = self._masks.encrypt(payload, client_id, weight)
    return sent.slot.to_bytes(4, 'little') + sent.message

  async def aggregate(self, updates: Iterable[FederatedUpdate]) -> RoundReport:
    """Takes the updates of this round in, changes the global model, and says what happened.

    Updates that are unsigned, replayed, stale, tampered with, of unknown clients or no sound
    messages are left out, logged and reported; who sent what is checked before it is decoded.

    Raises:
      NotEnoughClients: fewer than `min_clients` sound ones; nothing has changed.
    """
    return self._aggregate(list(updates), {})

  def _aggregate(self, updates: list[Any], left_out: dict[str, str]) -> RoundReport:
    params = self._params()
    found: dict[str, _Read] = {}
    for update in updates:
      name = str(getattr(update, 'client_id', '?'))
      try:
        found[name] = self._read(update, found)
      except ValueError as error:
        _log.warning('update of client %r left out: %s', name, error)
        left_out = {**left_out, name: str(error)}
    self._enough(len(found), f'sound updates (left out: {left_out!r})')
    # As the engine adds clients of unequal sizes: the largest first.
    read = sorted(found.values(), key=lambda x: -x.client.data.num_examples)
    new, states = self._step(params, read)
    if not bool(tree.finite(new)):
      raise ValueError('the new parameters must be finite, got NaN or infinity: nothing changed.')
    self._model = FederatedModel(self._current().model, new)
    self._states = states
    self._chooser.learn([(x.client, x.update.metadata) for x in read])
    counts = [x.update.metadata.num_examples for x in read]
    losses = [x.update.metadata.loss_before for x in read]
    report = RoundReport(
      self.round,
      tuple(found),
      left_out,
      float(np.average(losses, weights=counts)),
      sum(len(x.update.data) for x in read),
      self.privacy_accountant.epsilon,
    )
    self.reports.append(report)
    self.round += 1
    self._masks = None
    return report

  def _read(self, update: Any, found: dict[str, _Read]) -> _Read:
    """Returns an update checked and decoded; `ValueError` says why not."""
    if not isinstance(update, FederatedUpdate):
      raise ValueError(f'an update must be a FederatedUpdate, got {type(update).__name__}')
    self._register.check(update.client_id, update.statement, update.signature)
    if update.run_id != self.run_id or update.round > self.round:
      raise identity.Unauthentic('of another run or round')
    if update.client_id in found:
      raise identity.Unauthentic('replayed: this round has an update of the client already')
    if update.round < self.round or update.model_hash != self._current().digest:
      raise identity.Unauthentic('stale: of an earlier round or another model')
    client = self._members.get(update.client_id)
    if client is None:
      raise identity.Unauthentic('unknown client: it must be selected or registered')
    message = self._decode(client, update)
    if self._masks is None:
      sound = math.isfinite(float(message.weight)) and float(message.weight) > 0
      if not sound or not bool(tree.finite(message.payload)):
        raise ValueError('garbage: values that are not finite, or a weight that is not above 0')
    return _Read(client, update, message)

  def _decode(self, client: FederatedClient, update: FederatedUpdate) -> Message:
    """Returns the message as it enters the sum; masked ones stay bytes."""
    if self._masks is not None:
      slot = int.from_bytes(update.data[:4], 'little')
      return Message(EncryptedUpdate(slot, update.data[4:]), jnp.float32(1), {})
    params, config = self._params(), client.config.compression_config
    shapes = tuple(x.shape for x in jax.tree.leaves(params))
    if config is None:
      values, weight = compression.from_dense(update.data, codecs.size(shapes))
      return Message(codecs.unflat(values, params), jnp.float32(weight), {})
    made = compression.codec(config)
    code, weight = codecs.from_bytes(made, update.data, shapes)
    if made.linear:
      return Message(code.rest, jnp.float32(weight), {})
    values = compression.decoder(config, shapes)(self._draws(client, made.name), code)
    return Message(codecs.unflat(values, params), jnp.float32(weight), {})

  def _draws(self, client: FederatedClient, name: str) -> codecs.Draws:
    base = keys.layer_key(keys.seed_key(self.config.seed), self.round, name)
    number = list(self._members).index(client.client_id)
    return codecs.Draws(keys.role_key(base, 'client', number), keys.role_key(base, 'common'))

  def _step(self, params: Any, read: list[_Read]) -> tuple[Any, Any]:
    """Returns (parameters, server states) after the server halves on the sum."""
    halves = read[0].client.halves()
    recipes = {x.client.recipe()._replace(transform=None, noise=0.0, privacy=None) for x in read}
    if len({(x.compression, x.sgd and x.learning_rate) for x in recipes}) > 1:
      raise ValueError(
        'compression_config (and under FedSGD learning_rate) must be the same for all clients of a '
        'round, got several.'
      )
    states = halves.states(params) if self._states is None else self._states
    if self._masks is not None:
      mean = self._masks.secure_aggregate([x.message.payload for x in read])
      total = Message(jax.tree.map(jnp.asarray, mean), jnp.float32(1), {})
    else:
      messages = [self._chooser.weighted(x.client, x.message) for x in read]
      if self._rule:
        # Ties go to the lowest id, whatever the order in which clients were drawn.
        number = {name: i for i, name in enumerate(self._members)}
        order = sorted(range(len(read)), key=lambda i: number[read[i].client.client_id])
        messages = [messages[i] for i in order]
        total = self._rule(messages, params, self.config.seed, self.round)
      else:
        total = tree.zeros(messages[0])
        for message in messages:
          total = tree.add(total, message)
    seed, round = np.uint32(self.config.seed), np.int32(self.round)
    return halves.server(params, total, states, seed, round)

  async def run_round(self) -> RoundReport:
    """Runs a round over the registered clients: select, train side by side, aggregate, broadcast.

    A client that raises, takes longer than `client_timeout` or returns garbage is left out and
    reported; the round goes on if enough remain.

    Raises:
      NotEnoughClients: no clients are registered, or too few updates are left.
    """
    if not self._clients:
      raise NotEnoughClients('clients must be registered with the server first, got none.')
    for client in self._clients.values():
      if self._model is not None:
        client.receive_global_model(self._model, self.round)
    chosen = self.select_clients(self._clients.values())
    slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(client: FederatedClient) -> Any:
      async with slots:
        train = lambda: asyncio.run(client.train_round())
        return await workers.run(train, self.config.client_timeout)

    answers = await asyncio.gather(*map(one, chosen), return_exceptions=True)
    updates, left_out = [], {}
    for client, answer in zip(chosen, answers, strict=True):
      if isinstance(answer, BaseException):
        late = f'no answer within {self.config.client_timeout} seconds'
        left_out[client.client_id] = late if isinstance(answer, TimeoutError) else repr(answer)
        _log.warning('client %r left out: %s', client.client_id, left_out[client.client_id])
      else:
        updates.append(answer)
    report = self._aggregate(updates, left_out)
    for client in self._clients.values():
      client.receive_global_model(self.get_global_model(), self.round)
    return report

  def get_global_model(self) -> FederatedModel:
    """Returns a copy of the global model.

    Raises:
      ValueError: a module without parameters, and no client is known yet.
    """
    return self._current().copy()
