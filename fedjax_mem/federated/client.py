"""The client: trains on its own examples, and sends a signed update."""

import dataclasses
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.core import Layer, shapes, validate
from fedjax_mem.federated import compression, data, identity, scheduler
from fedjax_mem.federated import recipe as recipes
from fedjax_mem.federated.config import ClientConfig
from fedjax_mem.federated.model import FederatedModel, as_model, check_labels
from fedjax_mem.federated.privacy import DifferentialPrivacy
from fedjax_mem.federated.update import FederatedUpdate, Metadata
from fedjax_mem.secagg.errors import ProtocolError
from fedjax_mem.stages import compress as codecs

# Largest weight * loss in a masked sum, which has room for 2 ** 20 a client.
_LOSS_LIMIT = 2.0**19
_NOTE = f'examples, losses, norms and times that clients report beside updates: {NOT_COVERED}'


@dataclasses.dataclass(frozen=True)
class Place:
  """What a client knows of the server's run.

  Attributes:
    run_id: id of the run.
    number: number of the client in the run, from 0.
    seed: seed of the run.
    sgd: whether clients send gradients (FedSGD).
    equal: whether all clients have equal weights.
    secure: None, or (tree to mask, client id, weight) -> masked bytes of weight * tree.
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
    noise_seed: seed of the client's own noise, in [0, 2**32), for experiments that are to be
      repeated: it hides nothing from who knows the seed, and the guarantee says so. None: a secret
      of the operating system, which never leaves the client; every release has its own noise.

  Raises:
    ValueError: settings, model and examples do not fit each other.
  """

  def __init__(
    self, config: ClientConfig, model: Any, data_loader: Any, *, noise_seed: int | None = None
  ):
    if not isinstance(config, ClientConfig):
      raise ValueError(f'config must be a ClientConfig, got {config!r}.')
    self.config = config
    self.data = data.read(data_loader, config.local_epochs)
    self.model = as_model(model, self.data.input_shape, self.data.input_dtype)
    check_labels(self.model, self.data.y, self.data.input_dtype)
    if noise_seed is not None:
      validate.seed(noise_seed=noise_seed)
    self.privacy = (
      DifferentialPrivacy(config.privacy_config, noise_seed=noise_seed, notes=(_NOTE,))
      if config.privacy_config
      else None
    )
    self._key = identity.SigningKey()
    self._place = Place(number=zlib.crc32(config.client_id.encode()) >> 1)
    self._round = 0
    self._received = False
    self._done: _Done | None = None
    self._masked: dict[str, int] = {}  # run id -> last round whose update was masked
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
    more and costs no privacy. The update of a client with privacy counts as zeros, under its noise,
    if it is not finite: who fails is as private as who does not.

    Raises:
      PrivacyBudgetExceeded: the budget does not cover another release; nothing is released.
      ProtocolError: the server asks for the update of a round under masks again.
      ValueError: the update of a client without privacy is not finite; or a client with privacy has
        trained in this round from other parameters before.
    """
    return await scheduler.threaded(self._train)

  def _train(self) -> FederatedUpdate:
    with self._lock:
      start, place, round = self.model, self._place, self._round
      now = (place.run_id, round, start.digest)
      done = self._done
      if done is not None and (not place.run_id or done.about[:2] != now[:2]):
        done = None  # of another round
      if place.secure is not None and (done is None or done[:2] != (now, place)):
        self._check_unmasked(place, round)
      if done is not None and done.about != now and self.privacy is not None:
        # The noise is computed for one release a round.
        raise ValueError(
          f'client {self.client_id!r} must train once in round {round}, got other parameters.'
        )
      if done is None or done.about != now:
        done = _Done(now, None, None, *self._computed(start, place, round))
      if done.place is not place:  # selected again
        done = done._replace(place=place, update=self._signed(done, place))
      self._done = done
      if not place.run_id:
        self._round += 1
      update: FederatedUpdate = done.update
      return update

  def _check_unmasked(self, place: Place, round: int) -> None:
    """Raises `ProtocolError` if an update of this round, or of a later one, was masked before.

    The difference of two masked sums of a round would be one client's update.
    """
    if round <= self._masked.get(place.run_id, -1):
      raise ProtocolError(
        f'client {self.client_id!r} must mask its update of round {round} once, got another '
        'request: a new round has new masks.'
      )

  def _computed(self, start: FederatedModel, place: Place, round: int) -> tuple[Any, float]:
    """Returns (the computed update, seconds), and charges the privacy budget for its release."""
    began = time.perf_counter()
    # Without privacy no noise is drawn, and the root is not used.
    root = np.zeros(2, np.uint32) if self.privacy is None else self.privacy.charge()
    sent = self.sides().client(
      start.params,
      self._padded,
      np.int32(self.data.num_examples),
      np.uint32(place.seed),
      np.int32(round),
      np.int32(place.number),
      root,
    )
    if self.privacy is None and not bool(sent.finite):
      raise ValueError(
        f'the update of client {self.client_id!r} must be finite, got NaN or infinity: lower the '
        'learning rate.'
      )
    return sent, time.perf_counter() - began

  def _signed(self, done: '_Done', place: Place) -> FederatedUpdate:
    sent, about = done.sent, done.about
    wire = self._bytes(sent, place, about[1])
    size = codecs.dense_size(self.model.params)
    metadata = Metadata(None, None, None, None, None, len(wire), size, None)
    if place.secure is None:
      metadata = Metadata(
        self.data.num_examples,
        float(sent.before),
        float(sent.after),
        float(sent.norm),
        bool(sent.clipped > 0),
        len(wire),
        size,
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

  def _bytes(self, sent: recipes.Sent, place: Place, round: int) -> bytes:
    """Returns the message as bytes: masked, compressed or dense."""
    weight = float(sent.message.weight)
    if place.secure is not None:
      mean = jax.tree.map(lambda x: np.asarray(x, np.float32) / weight, sent.message.update)
      masked = place.secure((mean, self._loss(sent, place, weight)), self.client_id, weight)
      self._masked[place.run_id] = round
      return masked
    if sent.code is not None:
      return codecs.to_bytes(sent.code, weight)
    return compression.dense(sent.message.update, weight)

  def _loss(self, sent: recipes.Sent, place: Place, weight: float) -> np.ndarray:
    """Returns the loss before training for the masked sum, within its range, float32 scalar.

    It is 0 where some client has privacy: noise does not cover the sum of the losses.
    """
    loss, most = float(sent.before), _LOSS_LIMIT / weight
    loss = loss if loss <= most else most  # NaN, too
    return np.asarray(0.0 if place.equal else loss, np.float32)

  def __repr__(self) -> str:
    """Shows the id and the number of examples, and no secret."""
    return f'FederatedClient({self.client_id!r}, examples={self.data.num_examples})'
