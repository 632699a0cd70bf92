"""The client: trains on its own examples, and sends a signed update."""

import dataclasses
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem.core import Layer, shapes
from fedjax_mem.federated import compression, data, identity, scheduler
from fedjax_mem.federated import recipe as recipes
from fedjax_mem.federated.config import ClientConfig
from fedjax_mem.federated.model import FederatedModel, as_model, check_labels
from fedjax_mem.federated.privacy import DifferentialPrivacy
from fedjax_mem.stages import compress as codecs

_METADATA = struct.Struct('<qddd?qqd')  # the bytes that are signed


class Metadata(NamedTuple):
  """Facts that a client reports beside its update.

  They depend on its examples and get no noise: no ε covers them.

  Attributes:
    num_examples: number of examples it trained on.
    loss_before: mean loss in nats at the parameters it received.
    loss_after: mean loss in nats after training.
    norm: L2 norm of the whole update before clipping.
    clipped: whether the update was clipped.
    bytes: bytes of the message as sent.
    dense_bytes: bytes of the message if it were not compressed.
    seconds: seconds of training.
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
  """A client's signed update.

  A transport has to carry all fields but `values`, which the server never reads.

  Attributes:
    run_id: id of the server's run.
    client_id: id of the client that sends it.
    round: number of the round it is for, from 0.
    model_hash: SHA-256 of the parameters that the client started from.
    data: the message as sent: compressed, or masked.
    metadata: facts that the client reports.
    signature: Ed25519 signature of all fields above, 64 bytes.
    values: the update that the server decodes from `data`: server - client, after clip and noise,
      times the client's weight; None if the message is masked.
  """

  run_id: str
  client_id: str
  round: int
  model_hash: bytes
  data: bytes
  metadata: Metadata
  signature: bytes
  values: Any

  @property
  def statement(self) -> bytes:
    """The bytes that are signed.

    Raises:
      Unauthentic: a field has a wrong type, so that no client can have signed it.
    """
    try:
      metadata = _METADATA.pack(*self.metadata)
      return identity.statement(
        self.run_id, self.client_id, self.round, self.model_hash, self.data, metadata
      )
    except (AttributeError, TypeError, ValueError, struct.error) as error:
      raise identity.Unauthentic(f'malformed: {error}') from error


@dataclasses.dataclass(frozen=True)
class Place:
  """What a client knows of the server's run.

  Attributes:
    run_id: id of the run.
    number: number of the client in the run, from 0.
    seed: seed of the run.
    sgd: whether clients send gradients (FedSGD).
    equal: whether all clients have equal weights.
    secure: None, or (update tree, client id, weight) -> masked bytes.
  """

  run_id: str = ''
  number: int = 0
  seed: int = 0
  sgd: bool = False
  equal: bool = False
  secure: Callable[[Any, str, float], bytes] | None = None


class _Done(NamedTuple):
  """The last update that a client computed.

  Attributes:
    about: run id, round, hash of the parameters that it started from.
    place: what the client knew of the run when `update` was made.
    update: the signed update.
    sent: the update as computed.
    seconds: seconds of training.
  """

  about: tuple[str, int, bytes]
  place: Place | None
  update: Any
  sent: recipes.Sent
  seconds: float


class FederatedClient:
  """One client with its examples, its key and its privacy budget.

  Args:
    config: settings of the client.
    model: any model that `as_model` takes. A model without parameters gets them from a fixed seed,
      so that the server and all clients start from the same.
    data_loader: the client's examples, in any form that `federated.data.read` takes.

  Raises:
    ValueError: settings, model and examples do not fit each other.
  """

  def __init__(self, config: ClientConfig, model: Any, data_loader: Any):
    if not isinstance(config, ClientConfig):
      raise ValueError(f'config must be a ClientConfig, got {config!r}.')
    self.config = config
    self.data = data.read(data_loader, config.local_epochs)
    self.model = as_model(model, self.data.input_shape, self.data.input_dtype)
    check_labels(self.model, self.data.y, self.data.input_dtype)
    self.privacy = DifferentialPrivacy(config.privacy_config) if config.privacy_config else None
    self._key = identity.SigningKey()
    self._place = Place(number=zlib.crc32(config.client_id.encode()) >> 1)
    self._round = 0
    self._received = False
    self._done: _Done | None = None
    self._lock = threading.Lock()
    self._padded = self._pad()

  def _pad(self) -> dict[str, np.ndarray]:
    """Returns the examples, padded with the last one to a size that clients have in common."""
    more = recipes.capacity(self.data.num_examples, self.config.batch_size) - self.data.num_examples

    def pad(x: np.ndarray) -> np.ndarray:
      return np.concatenate([x, np.broadcast_to(x[-1:], (more, *x.shape[1:]))])

    padded: dict[str, np.ndarray] = jax.tree.map(pad, {'x': self.data.x, 'y': self.data.y})
    return padded

  @property
  def client_id(self) -> str:
    """The client's id, from its config."""
    return self.config.client_id

  @property
  def signing_key(self) -> identity.SigningKey:
    """The client's key pair."""
    return self._key

  @property
  def public_key(self) -> bytes:
    """The public key that a server enrols, 32 bytes."""
    return self.signing_key.public

  def join(self, place: Place, round: int, rounds: int, model: FederatedModel) -> None:
    """Joins a server's run; the server calls this.

    Args:
      place: what the client needs to know of the run.
      round: the server's current round.
      rounds: number of rounds of the run. The noise is computed for so many releases, unless the
        client has made a release before.
      model: the server's model; a client that never received one starts from it.
    """
    self._place, self._round = place, round
    if not self._received:
      self.receive_global_model(model)
    if self.privacy is not None:
      self.privacy.plan(rounds)

  def receive_global_model(self, model: FederatedModel, round: int | None = None) -> None:
    """Takes the server's parameters, from which the next round's training starts.

    Raises:
      ValueError: the model has another structure.
    """
    given = as_model(model, self.data.input_shape, self.data.input_dtype)
    if not shapes.same(given.params, self.model.params):
      raise ValueError(f"model must be of {self.client_id!r}'s own structure, got another.")
    self.model = FederatedModel(self.model.model, given.params).copy()
    self._received = True
    if round is not None:
      self._round = round

  def recipe(self) -> recipes.Recipe:
    """Returns the recipe of the client's computation."""
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

  def sides(
    self, chooser: Layer | None = None, rules: tuple[Layer, ...] = (), **changed: Any
  ) -> recipes.Sides:
    """Returns the compiled sides of the client's recipe, with some of its fields changed.

    Args:
      chooser: layer that selects the clients; None: this client only.
      rules: robust rules of the server.
      changed: fields of the recipe, with their new values.
    """
    shapes = tuple((name, x.shape, x.dtype.name) for name, x in sorted(self._padded.items()))
    return recipes.sides(
      self.recipe()._replace(**changed), shapes, chooser or recipes.given(1), rules
    )

  async def train_round(self) -> FederatedUpdate:
    """Returns a signed update after local training, which runs in a worker thread.

    A second call in the same round, from the same parameters, returns the same update; it trains no
    more and costs no privacy.

    Raises:
      PrivacyBudgetExceeded: the budget does not cover another release; nothing is released.
      ValueError: the update is not finite; or a client with privacy has trained in this round from
        other parameters before.
    """
    return await scheduler.threaded(self._train)

  def _train(self) -> FederatedUpdate:
    with self._lock:
      start, place, round = self.model, self._place, self._round
      now = (place.run_id, round, start.digest)
      done = self._done
      if done is None or not place.run_id or done.about[:2] != now[:2]:
        done = _Done(now, None, None, *self._computed(start, place, round))
      elif done.about != now:
        if self.privacy is not None:
          # The same noise on two updates would cancel in their difference.
          raise ValueError(
            f'client {self.client_id!r} must train once in round {round}, got other parameters.'
          )
        done = _Done(now, None, None, *self._computed(start, place, round))
      if done.place is not place:  # selected again: new masks, since masks hide one update only
        done = done._replace(place=place, update=self._signed(done, place))
      self._done = done
      if not place.run_id:
        self._round += 1
      update: FederatedUpdate = done.update
      return update

  def _computed(self, start: FederatedModel, place: Place, round: int) -> tuple[Any, float]:
    """Returns (the computed update, seconds), and charges the privacy budget for its release."""
    began = time.perf_counter()
    if self.privacy is not None:
      self.privacy.check()
    sent = self.sides().client(
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
    return sent, time.perf_counter() - began

  def _signed(self, done: '_Done', place: Place) -> FederatedUpdate:
    sent, about = done.sent, done.about
    wire = self._bytes(sent, place)
    metadata = Metadata(
      self.data.num_examples,
      float(sent.before),
      float(sent.after),
      float(sent.norm),
      bool(sent.clipped > 0),
      len(wire),
      codecs.dense_size(self.model.params),
      done.seconds,
    )
    values = self._values(sent, place, about[1]) if place.secure is None else None
    run_id, round, digest = about
    update = FederatedUpdate(run_id, self.client_id, round, digest, wire, metadata, b'', values)
    return dataclasses.replace(update, signature=self._key.sign(update.statement))

  def _values(self, sent: recipes.Sent, place: Place, round: int) -> Any:
    """Returns the update as the server decodes it; codes that add are decoded here, too."""
    config, params = self.config.compression_config, self.model.params
    if config is None or not compression.codec(config).adds:
      return sent.message.update
    draws = compression.draws(config, place.seed, round, place.number)
    return compression.whole(config, draws, codecs.Code((), sent.message.update), params)

  def _bytes(self, sent: recipes.Sent, place: Place) -> bytes:
    """Returns the message as bytes: masked, compressed or dense."""
    weight = float(sent.message.weight)
    if place.secure is not None:
      mean = jax.tree.map(lambda x: np.asarray(x, np.float32) / weight, sent.message.update)
      return place.secure(mean, self.client_id, weight)
    if sent.code is not None:
      return codecs.to_bytes(sent.code, weight)
    return compression.dense(sent.message.update, weight)

  def __repr__(self) -> str:
    """Shows the id and the number of examples, and no secret."""
    return f'FederatedClient({self.client_id!r}, examples={self.data.num_examples})'
