"""The client: trains on its own examples, and sends a signed update."""

import dataclasses
import threading
import time
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem.core import tree
from fedjax_mem.federated import compression, data, identity, workers
from fedjax_mem.federated import recipe as recipes
from fedjax_mem.federated.config import ClientConfig
from fedjax_mem.federated.model import FederatedModel, as_model
from fedjax_mem.federated.privacy import DifferentialPrivacy
from fedjax_mem.stages.compress import codec as codecs


class Metadata(NamedTuple):
  """What a client reports beside its update. Of its examples, without noise: no ε covers it.

  Attributes:
    num_examples: it trained on.
    loss_before: mean loss in nats at the parameters it received.
    loss_after: mean loss after training.
    norm: of the whole update before clipping (L2).
    clipped: whether it was clipped.
    bytes: of the message on the wire.
    dense_bytes: of the message uncompressed.
    seconds: of training.
  """

  num_examples: int
  loss_before: float
  loss_after: float
  norm: float
  clipped: bool
  bytes: int
  dense_bytes: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class FederatedUpdate:
  """A client's signed update. Transports carry these fields; the server reads `data` alone.

  Attributes:
    run_id: of the server's run.
    client_id: who sends it.
    round: which it is for, from 0.
    model_hash: SHA-256 of the parameters it started from.
    data: the message as it goes on the wire: compressed, or masked.
    signature: Ed25519, over all of the above; 64 bytes.
    metadata: what the client reports.
    values: what the server decodes: the privacy-preserved update, server - client times the
      client's weight; None if it is masked.
  """

  run_id: str
  client_id: str
  round: int
  model_hash: bytes
  data: bytes
  signature: bytes
  metadata: Metadata
  values: Any

  @property
  def statement(self) -> bytes:
    """What is signed."""
    return identity.statement(self.run_id, self.client_id, self.round, self.model_hash, self.data)


@dataclasses.dataclass(frozen=True)
class Place:
  """What a client knows of its server.

  Attributes:
    run_id: of the run.
    number: the client's, from 0.
    seed: of the run.
    sgd: whether gradients are asked for.
    equal: whether all clients count the same.
    secure: None, or (payload tree, client id, weight) -> masked bytes.
  """

  run_id: str = ''
  number: int = 0
  seed: int = 0
  sgd: bool = False
  equal: bool = False
  secure: Any = None


class FederatedClient:
  """One client with its examples, its key and its privacy budget.

  Args:
    config: its settings.
    model: see `as_model`; what brings no parameters gets them from one fixed seed, so that the
      server and all clients start alike.
    data_loader: see `data.read`.

  Raises:
    ValueError: settings, model and examples that do not fit.
  """

  def __init__(self, config: ClientConfig, model: Any, data_loader: Any):
    if not isinstance(config, ClientConfig):
      raise ValueError(f'config must be a ClientConfig, got {config!r}.')
    self.config = config
    self.data = data.read(data_loader, config.local_epochs)
    self.model = as_model(model, self.data.input_shape, self.data.input_dtype)
    self._check_labels()
    self.privacy = DifferentialPrivacy(config.privacy_config) if config.privacy_config else None
    self._key: identity.SigningKey | None = None
    self._place = Place(number=zlib.crc32(config.client_id.encode()) >> 1)
    self._round = 0
    self._last: FederatedUpdate | None = None
    self._lock = threading.Lock()
    self._padded = self._pad()

  def _check_labels(self) -> None:
    most = int(self.data.y.max())
    if most >= self.model.model.num_classes:
      raise ValueError(
        f'labels must be in [0, {self.model.model.num_classes}), the classes of the model, '
        f'got {most}.'
      )

  def _pad(self) -> dict[str, np.ndarray]:
    """Returns the arrays, their last example repeated up to a size that others have too."""
    more = recipes.capacity(self.data.num_examples, self.config.batch_size) - self.data.num_examples
    pad = lambda x: np.concatenate([x, np.broadcast_to(x[-1:], (more, *x.shape[1:]))])
    return {'x': pad(self.data.x), 'y': pad(self.data.y)}

  @property
  def client_id(self) -> str:
    """Of the config."""
    return self.config.client_id

  @property
  def signing_key(self) -> identity.SigningKey:
    """The client's key pair, made when it is first needed."""
    with self._lock:
      self._key = self._key or identity.SigningKey()
      return self._key

  @property
  def public_key(self) -> bytes:
    """What a server enrols, 32 bytes."""
    return self.signing_key.public

  def join(self, place: Place, round: int, rounds: int) -> None:
    """Takes part in a server's run; the server calls it.

    Args:
      place: what the client is to know.
      round: the server's.
      rounds: of the run: the noise is computed for so many releases, if none was made yet.
    """
    self._place, self._round = place, round
    if self.privacy is not None:
      self.privacy.plan(rounds)

  def receive_global_model(self, model: FederatedModel, round: int | None = None) -> None:
    """Takes the server's parameters to start the next round from.

    Raises:
      ValueError: a model of another structure.
    """
    given = as_model(model, self.data.input_shape, self.data.input_dtype)
    if not tree.same(given.params, self.model.params):
      raise ValueError(f"model must be of {self.client_id!r}'s own structure, got another.")
    self.model = FederatedModel(self.model.model, given.params).copy()
    if round is not None:
      self._round = round

  def recipe(self) -> recipes.Recipe:
    """Returns the settings by which the client computes."""
    config, place = self.config, self._place
    return recipes.Recipe(
      self.model.model,
      config.local_epochs,
      config.batch_size,
      config.learning_rate,
      place.sgd,
      place.equal or config.privacy_config is not None,
      config.privacy_config,
      self.privacy.noise_multiplier if self.privacy else 0.0,
      config.compression_config,
      place.secure is not None,
      self.data.transform,
    )

  def halves(self) -> recipes.Halves:
    """Returns the compiled halves of the client's recipe."""
    shapes = tuple((name, x.shape, x.dtype.name) for name, x in sorted(self._padded.items()))
    return recipes.halves(self.recipe(), shapes)

  async def train_round(self) -> FederatedUpdate:
    """Returns a signed update after local training, done in a worker thread.

    Training again in a round, from the same parameters, gives the same update and costs nothing.

    Raises:
      PrivacyBudgetExceeded: the budget covers no other release; nothing is released.
      ValueError: the update is not finite, or the round was answered from other parameters.
    """
    return await workers.run(self._train)

  def _train(self) -> FederatedUpdate:
    key = self.signing_key
    with self._lock:
      start, place, round, last = self.model, self._place, self._round, self._last
      if last is not None and (last.run_id, last.round) == (place.run_id, round):
        if place.run_id and last.model_hash == start.digest:
          return last
        if place.run_id and self.privacy is not None:
          # The same noise on two updates would cancel in their difference.
          raise ValueError(
            f'client {self.client_id!r} must train once in round {round}, got other parameters.'
          )
      update = self._computed(key, start, place, round)
      self._last = update
      if not place.run_id:
        self._round += 1
      return update

  def _computed(self, key, start, place: Place, round: int) -> FederatedUpdate:
    began = time.perf_counter()
    if self.privacy is not None:
      self.privacy.check()
    sent = self.halves().client(
      start.params,
      self._padded,
      np.int32(self.data.num_examples),
      np.uint32(place.seed),
      np.int32(round),
      np.int32(place.number),
    )
    if not bool(sent.finite):
      raise ValueError(
        f'the update of client {self.client_id!r} must be finite, got NaN or infinity: lower the '
        'learning rate.'
      )
    if self.privacy is not None:
      self.privacy.charge()
    wire = self._bytes(sent, place)
    metadata = Metadata(
      self.data.num_examples,
      float(sent.before),
      float(sent.after),
      float(sent.norm),
      bool(sent.clipped > 0),
      len(wire),
      codecs.dense_size(start.params),
      time.perf_counter() - began,
    )
    said = identity.statement(place.run_id, self.client_id, round, start.digest, wire)
    values = sent.message.payload if place.secure is None else None
    return FederatedUpdate(
      place.run_id,
      self.client_id,
      round,
      start.digest,
      wire,
      key.sign(said),
      metadata,
      values,
    )

  def _bytes(self, sent: recipes.Sent, place: Place) -> bytes:
    """Returns the message as it goes on the wire."""
    weight = float(sent.message.weight)
    if place.secure is not None:
      mean = jax.tree.map(lambda x: np.asarray(x, np.float32) / weight, sent.message.payload)
      return place.secure(mean, self.client_id, weight)
    if sent.code is not None:
      return codecs.to_bytes(sent.code, weight)
    return compression.dense(sent.message.payload, weight)

  def __repr__(self) -> str:
    """Says who it is and what it holds; no secret."""
    return f'FederatedClient({self.client_id!r}, examples={self.data.num_examples})'
