"""Incoming updates of a round: checks of sender and round, and decoding."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Message, tree
from fedjax_mem.federated import compression, identity
from fedjax_mem.federated.client import FederatedClient, Place
from fedjax_mem.federated.registry import Registry
from fedjax_mem.federated.update import FederatedUpdate, Metadata
from fedjax_mem.secagg.aggregator import EncryptedUpdate
from fedjax_mem.stages import compress as codecs

_log = logging.getLogger('fedjax_mem.federated')


class Read(NamedTuple):
  """A sound update.

  Attributes:
    client: the client that sent it.
    update: the update as sent.
    message: the message as it enters the sum: decoded values, or a code that adds.
    draws: random keys of the code, or None.
  """

  client: FederatedClient
  update: FederatedUpdate
  message: Message
  draws: codecs.Keys | None

  def whole(self, params: Any) -> Message:
    """Returns the message with its update decoded to a tree like `params`."""
    config = self.client.config.compression_config
    if config is None or self.draws is None or not compression.codec(config).adds:
      return self.message
    code = codecs.Code((), self.message.update)
    return self.message._replace(update=compression.whole(config, self.draws, code, params))


class Wanted(NamedTuple):
  """The run and round that updates must belong to.

  Attributes:
    run_id: id of the server's run.
    round: number of the round, from 0.
    params: the server's parameters.
    model_hash: SHA-256 of the parameters.
    chosen: ids of the selected clients.
    sealed: client id -> masked bytes that secure aggregation made for it; None: no masks.
  """

  run_id: str
  round: int
  params: Any
  model_hash: bytes
  chosen: frozenset[str]
  sealed: dict[str, bytes] | None


def opened(
  updates: list[tuple[str, Any]],
  wanted: Wanted,
  registry: Registry,
  place: Callable[[FederatedClient], Place],
) -> tuple[dict[str, Read], dict[str, str]]:
  """Checks updates before they are decoded, and decodes them.

  Args:
    updates: pairs of (id of the claimed sender, update).
    wanted: run and round that they must belong to.
    registry: registry of the clients.
    place: client -> what it knows of the run.

  Returns:
    (client id -> sound update, claimed sender -> reason why the update was left out).
  """
  found: dict[str, Read] = {}
  left_out: dict[str, str] = {}
  for name, update in updates:
    try:
      if str(getattr(update, 'client_id', name)) != name:
        raise identity.Unauthentic(f'of another client, {update.client_id!r}')
      client = _sender(update, wanted, registry, found)
      if wanted.sealed is not None:
        found[name] = masked(client, update, wanted.sealed.get(name))
      else:
        found[name] = decoded(client, update, wanted.params, place(client))
    except ValueError as error:
      _log.warning('update of client %r left out: %s', name, error)
      left_out[name] = str(error)
  return found, left_out


def _sender(
  update: Any, wanted: Wanted, registry: Registry, found: dict[str, Read]
) -> FederatedClient:
  """Returns the client that signed an update of this round; else raises `ValueError`."""
  if not isinstance(update, FederatedUpdate):
    raise ValueError(f'garbage: not a FederatedUpdate but an object of {type(update).__name__}')
  if not isinstance(update.client_id, str) or not isinstance(update.metadata, Metadata):
    raise identity.Unauthentic('malformed: client_id is no text, or metadata are no Metadata')
  registry.check(update)
  if update.run_id != wanted.run_id or update.round > wanted.round:
    raise identity.Unauthentic('of another run or round')
  if update.client_id in found:
    raise identity.Unauthentic('replayed: this round has an update of the client already')
  if update.round < wanted.round or update.model_hash != wanted.model_hash:
    raise identity.Unauthentic('stale: of an earlier round or another model')
  if update.client_id not in wanted.chosen:
    raise identity.Unauthentic('of a client that was not selected for this round')
  return registry.members[update.client_id]


def _shapes(params: Any) -> codecs.Shapes:
  return tuple(x.shape for x in jax.tree.leaves(params))


def masked(client: FederatedClient, update: FederatedUpdate, sealed: bytes | None) -> Read:
  """Returns a masked update; its bytes are not decoded, since the server sees only the sum.

  Args:
    client: the client that sent it.
    update: its update, of this round and these parameters.
    sealed: bytes that secure aggregation made for the client. Masked bytes are uniform: other bytes
      would spoil the sum without being noticed.

  Raises:
    ValueError: the bytes are not those of this selection's masks.
  """
  if update.data != sealed:
    raise ValueError('garbage: bytes that are not from the masks of this selection')
  slot = int.from_bytes(update.data[:4], 'little')
  message = Message(EncryptedUpdate(slot, update.data[4:]), jnp.float32(1), {})
  return Read(client, update, message, None)


def decoded(client: FederatedClient, update: FederatedUpdate, params: Any, place: Place) -> Read:
  """Returns an update with its bytes decoded.

  Args:
    client: the client that sent it.
    update: its update, of this round and these parameters.
    params: the server's parameters.
    place: what the client knows of the run.

  Raises:
    ValueError: bytes or metadata that this client cannot have sent, or values that are not finite.
  """
  _check_metadata(client, update)
  config, shapes = client.config.compression_config, _shapes(params)
  draws = None
  if config is None:
    moved, weight = compression.from_dense(update.data, codecs.size(shapes))
    moved = codecs.unflat(moved, params)
  else:
    draws = compression.draws(config, place.seed, update.round, place.number)
    code, weight = codecs.from_bytes(compression.codec(config), update.data, shapes)
    moved = code.rest
    if not compression.codec(config).adds:
      moved = compression.whole(config, draws, code, params)
  count = update.metadata.num_examples
  if weight != (1.0 if place.equal else np.float32(count)):
    raise ValueError(f'garbage: a weight of {weight:g} for {count} examples')
  if not bool(tree.finite(moved)):
    raise ValueError('garbage: values that are not finite')
  return Read(client, update, Message(moved, jnp.float32(weight), {}), draws)


def _check_metadata(client: FederatedClient, update: FederatedUpdate) -> None:
  """Raises `ValueError` for metadata that no sound update has.

  The update of a client with privacy takes part whatever became of its training: the noise hides
  whether it failed.
  """
  found = update.metadata
  values = [x for x in (found.loss_before, found.norm) if x is not None]
  sound = len(values) == 2 and all(map(math.isfinite, values))
  if not found.num_examples or found.num_examples < 1 or not (sound or client.privacy is not None):
    raise ValueError(f'garbage: metadata {found!r}')
