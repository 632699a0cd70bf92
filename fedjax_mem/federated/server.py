"""The server: selects clients, checks their updates, aggregates, and keeps the global model."""

import dataclasses
import functools
import logging
import math
import secrets
import threading
from collections.abc import Iterable
from typing import Any

from fedjax_mem.federated import data, inbox, scheduler
from fedjax_mem.federated import model as models
from fedjax_mem.federated.aggregator import Aggregator
from fedjax_mem.federated.client import FederatedClient, Place
from fedjax_mem.federated.config import AggregationStrategy, NotEnoughClients, ServerConfig
from fedjax_mem.federated.model import FederatedModel, check_labels
from fedjax_mem.federated.privacy import ClientsAccountant, DifferentialPrivacy
from fedjax_mem.federated.registry import Registry
from fedjax_mem.federated.selection import Chooser
from fedjax_mem.federated.update import FederatedUpdate
from fedjax_mem.secagg.aggregator import SecureAggregator

_log = logging.getLogger('fedjax_mem.federated')


@dataclasses.dataclass(frozen=True)
class RoundReport:
  """The results of a round.

  Attributes:
    round: number of the round, from 0.
    participants: ids of the clients whose updates were aggregated; empty if a round of secure
      aggregation ended below its threshold.
    left_out: client id -> reason why its update was left out.
    loss: mean loss of the participants' examples before training, in nats; no ε covers it. Under
      secure aggregation it comes from the masked sum, and is NaN where some client has privacy.
    bytes: bytes that the participants sent.
    epsilon: largest epsilon of the clients; infinite if a client adds no noise.
    contributions: participant -> its score after the round, if clients are selected by
      'contribution'.
  """

  round: int
  participants: tuple[str, ...]
  left_out: dict[str, str]
  loss: float
  bytes: int
  epsilon: float
  contributions: dict[str, float]


class FederatedServer:
  """The server of one run.

  Args:
    config: settings of the server and the run.
    global_model: model that clients start from, in any form that `as_model` takes. A module without
      parameters gets them from a fixed seed when the first client is known.
    validation_data: examples of the server that no client has, in any form that a client's
      `data_loader` may have; selection by 'contribution' needs them.

  Raises:
    ValueError: the config or the model has a wrong type, or the validation examples do not fit the
      model or are missing.
  """

  def __init__(self, config: ServerConfig, global_model: Any, validation_data: Any = None):
    if not isinstance(config, ServerConfig):
      raise ValueError(f'config must be a ServerConfig, got {config!r}.')
    self.config = config
    self.run_id = secrets.token_hex(16)
    self.round = 0
    self.reports: list[RoundReport] = []
    self._given = global_model
    self._model: FederatedModel | None = None
    held = None if validation_data is None else data.read(validation_data, 1)
    if held is not None:
      self._model = models.as_model(global_model, held.input_shape, held.input_dtype).copy()
      check_labels(self._model, held.y, held.input_dtype)
    elif not models.needs_shape(global_model):
      self._model = models.as_model(global_model).copy()
    self._registry = Registry(config)
    self._chooser = Chooser(config, held)
    self._chosen: frozenset[str] = frozenset()
    self._aggregator = Aggregator(config, self._chooser)
    self._masks: SecureAggregator | None = None
    self._sealed: dict[str, bytes] = {}  # client id -> its masked bytes in this selection
    self._equal = False  # whether all clients have equal weights in this round
    self._lock = threading.Lock()

  @property
  def privacy_accountant(self) -> ClientsAccountant:
    """The clients' local privacy: that of the client that spent most."""
    members = self._registry.members

    def spenders() -> list[DifferentialPrivacy]:
      known = [x.privacy for x in members.values() if x.privacy is not None]
      return known if len(known) == len(members) else []

    return ClientsAccountant(spenders)

  @property
  def contributions(self) -> dict[str, float]:
    """Client id -> its score: the mean of its contributions to the rounds that it took part in.

    A contribution is in nats of the loss on the server's validation examples. It is the Shapley
    value of the client's update among the round's sound updates, averaged as FedAvg does, or the
    rise of the loss if the client is left out. Empty unless `selection_strategy` is 'contribution'.
    """
    return self._chooser.scores

  def enrol(self, client_id: str, public_key: bytes) -> None:
    """Enrols a client by its Ed25519 public key.

    Raises:
      ValueError: the key is not of 32 bytes, or the id has another key already.
    """
    self._registry.enrol(client_id, public_key)

  def register(self, client: FederatedClient) -> None:
    """Adds a client to those that `run_round` selects from, and enrols its key.

    Raises:
      ValueError: the id has another key, the model differs from the server's, the key is not
        enrolled though it has to be, or the client has privacy and the selection looks at reports.
    """
    self._admit(client)
    self._registry.registered[client.client_id] = client

  def unregister(self, client_id: str) -> None:
    """Removes a client from those that `run_round` selects from; its key stays enrolled.

    Raises:
      ValueError: there is no such client.
    """
    self._registry.remove(client_id)

  def _admit(self, client: FederatedClient) -> None:
    self._registry.admit(client, lambda: self._fitting(client).params)

  def _fitting(self, client: FederatedClient) -> FederatedModel:
    """Returns the global model, made for the client's examples if it has no parameters yet."""
    if self._model is None:
      shape, dtype = client.data.input_shape, client.data.input_dtype
      self._model = models.as_model(self._given, shape, dtype).copy()
    return self._model

  def _place(self, client: FederatedClient) -> Place:
    secure = None if self._masks is None else functools.partial(self._masked, self._masks)
    number = self._registry.number(client)
    return Place(self.run_id, number, self.config.seed, self._sgd, self._equal, secure)

  @property
  def _sgd(self) -> bool:
    return self.config.aggregation is AggregationStrategy.FEDERATED_SGD

  def select_clients(self, clients: Iterable[FederatedClient]) -> list[FederatedClient]:
    """Returns the clients of this round, at most `max_clients`; all given clients join the run.

    Under secure aggregation a client masks its update of a round once. So if some have masked
    theirs since the last selection, that round ends without a sum, as in `aggregate`, and the
    clients returned are those of the next one.

    Raises:
      NotEnoughClients: fewer than `min_clients` clients are given.
      ValueError: the run is over, an id is given twice, or as in `register`.
    """
    clients = list(clients)
    names = [x.client_id for x in clients]
    if len(set(names)) < len(names):
      raise ValueError(f'client_id must be distinct, got {sorted(names)!r}.')
    if self._sealed:
      self._end_round({}, f'clients of round {self.round} must not be selected twice.')
    if self.round >= self.config.rounds:
      raise ValueError(f'rounds must be more than the {self.round} that are done; nothing is left.')
    self.check_enough(len(clients), 'clients')
    for client in clients:
      self._admit(client)
    rate = clients[0].config.learning_rate if self._sgd else 1.0
    chosen = self._chooser.choose(clients, self._params(), self.round, rate)
    self._chosen = frozenset(x.client_id for x in chosen)
    if self.config.aggregation is AggregationStrategy.SECURE_AGGREGATION:
      threshold = max(self.config.min_clients, len(chosen) // 2 + 1)
      self._masks, self._sealed = SecureAggregator(len(chosen), threshold), {}
    self._equal = self._registry.weighs_alike
    for client in clients:
      place = self._place(client)
      client.join(place, self.round, self.config.rounds, self._current())
    return chosen

  def check_enough(self, count: int, what: str) -> None:
    """Raises `NotEnoughClients` if there are fewer than `min_clients` of something."""
    if count < self.config.min_clients:
      raise NotEnoughClients(
        f'{what} must be at least min_clients = {self.config.min_clients}, got {count}: the round '
        f'is not done and the model has not changed.'
      )

  def _current(self) -> FederatedModel:
    if self._model is None:
      raise ValueError('the global model must have parameters: select or register clients first.')
    return self._model

  def _params(self) -> Any:
    return self._current().params

  def _masked(self, masks: SecureAggregator, update: Any, client_id: str, weight: float) -> bytes:
    """Returns a client's update under the masks of one selection; called by the client."""
    with self._lock:
      if client_id not in self._chosen:
        raise ValueError(f'client_id must be selected in round {self.round}, got {client_id!r}.')
      sent = masks.encrypt(update, client_id, weight)
      data = sent.slot.to_bytes(4, 'little') + sent.message
      if masks is self._masks:
        self._sealed[client_id] = data
    return data

  async def aggregate(self, updates: Iterable[FederatedUpdate]) -> RoundReport:
    """Aggregates the updates of this round into the global model, and returns a report.

    An update is left out, logged and reported if it is unsigned, replayed, stale, tampered with, of
    a client that is unknown or was not selected, or no sound message. Its signature is checked
    before it is decoded.

    Raises:
      NotEnoughClients: fewer sound updates than `min_clients`, or than a robust rule or secure
        aggregation needs; the model has not changed. Further updates may follow. Under secure
        aggregation the round has ended instead: its number is used up, since masks hide one update
        only, and `reports` has it without participants. Select clients for the next one.
    """
    named = [(str(getattr(x, 'client_id', '?')), x) for x in updates]
    return self._aggregate(named, {})

  def _aggregate(self, updates: list[tuple[str, Any]], left_out: dict[str, str]) -> RoundReport:
    """As `aggregate`, given pairs (sender, update) and the clients that are left out already."""
    params = self._params()
    sealed = None if self._masks is None else self._sealed
    wanted = inbox.Wanted(
      self.run_id, self.round, params, self._current().digest, self._chosen, sealed
    )
    found, wrong = inbox.opened(updates, wanted, self._registry, self._place)
    left_out = {**left_out, **wrong}
    try:
      self.check_enough(len(found), f'sound updates (left out: {left_out!r})')
      new, loss = self._aggregator.step(self.round, params, self._ordered(found), self._masks)
    except ValueError as error:
      if self._masks is None:
        raise
      ended = self._end_round(left_out, str(error))
      kind = NotEnoughClients if isinstance(error, NotEnoughClients) else ValueError
      raise kind(ended) from error
    if self._masks is not None and self._equal:
      loss = math.nan  # some client has privacy, so all sent 0
    self._model = FederatedModel(self._current().model, new)
    scores = self.contributions
    return self._reported(
      tuple(found),
      left_out,
      loss,
      sum(len(x.update.data) for x in found.values()),
      {name: scores[name] for name in found if name in scores},
    )

  def _ordered(self, found: dict[str, inbox.Read]) -> list[inbox.Read]:
    """Returns the sound updates in the order in which they are added."""
    reads = list(found.values())
    if self._masks is not None:  # sums of integers are the same in any order
      return reads
    if self._aggregator.rules:
      # Buckets are drawn by position: this makes it the number of the client.
      return sorted(reads, key=lambda x: self._registry.number(x.client))
    # The engine adds clients of unequal sizes in this order: the largest first.
    return sorted(reads, key=lambda x: -(x.update.metadata.num_examples or 0))

  def _end_round(self, left_out: dict[str, str], why: str) -> str:
    """Ends a round of secure aggregation without a sum, and returns what happened."""
    self._reported((), left_out, math.nan, 0, {})
    ended = (
      f'{why} Round {self.round - 1} has ended without a sum; round {self.round} has new masks: '
      'select clients for it.'
    )
    _log.warning('%s', ended)
    return ended

  def _reported(
    self,
    participants: tuple[str, ...],
    left_out: dict[str, str],
    loss: float,
    size: int,
    scores: dict[str, float],
  ) -> RoundReport:
    """Returns the report of this round, which it ends."""
    epsilon = self.privacy_accountant.epsilon
    report = RoundReport(self.round, participants, left_out, loss, size, epsilon, scores)
    self.reports.append(report)
    self.round += 1
    self._masks, self._sealed = None, {}
    return report

  async def run_round(self) -> RoundReport:
    """Runs a round over the registered clients: select, train concurrently, aggregate, broadcast.

    A client that raises, takes longer than `client_timeout` or returns an unsound update is left
    out and reported; the round goes on if enough remain.

    Raises:
      NotEnoughClients: no clients are registered, or too few updates are left, as in `aggregate`:
        under secure aggregation the next call is of the next round.
    """
    clients = self._registry.registered
    if not clients:
      raise NotEnoughClients('clients must be registered with the server first, got none.')
    for client in clients.values():
      if self._model is not None:
        client.receive_global_model(self._model, self.round)
    chosen = self.select_clients(clients.values())
    updates, left_out = await scheduler.trained(chosen, self.config.client_timeout)
    report = self._aggregate(updates, left_out)
    for client in clients.values():
      client.receive_global_model(self.get_global_model(), self.round)
    return report

  def get_global_model(self) -> FederatedModel:
    """Returns a copy of the global model.

    Raises:
      ValueError: the model is a module without parameters, and no client is known yet.
    """
    return self._current().copy()
