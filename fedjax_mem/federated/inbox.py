"""The updates of a round as they come in: who sent them, whether they are of it, what they say."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Message, tree
from fedjax_mem.federated import compression, identity
from fedjax_mem.federated.client import FederatedClient, FederatedUpdate, Metadata, Place
from fedjax_mem.federated.registry import Registry
from fedjax_mem.secagg.aggregator import EncryptedUpdate
from fedjax_mem.stages import compress as codecs

_log = logging.getLogger('fedjax_mem.federated')


class Read(NamedTuple):
  """A sound update.

  Attributes:
    client: who sent it.
    update: as it was sent.
    message: as it enters the sum of clients that compress alike: values, or a code that adds.
    draws: of the code.
  """

  client: FederatedClient
  update: FederatedUpdate
  message: Message
  draws: codecs.Keys | None

  def whole(self, params: Any) -> Message:
    """Returns the message with all values of a tree like `params`."""
    config = self.client.config.compression_config
    if config is None or self.draws is None or not compression.codec(config).adds:
      return self.message
    code = codecs.Code((), self.message.update)
    return self.message._replace(update=compression.whole(config, self.draws, code, params))


class Wanted(NamedTuple):
  """What an update must be of.

  Attributes:
    run_id: of the server's run.
    round: from 0.
    params: of the server.
    model_hash: SHA-256 of those.
    chosen: ids of the clients selected.
    sealed: what the masks gave each client; None: updates come in the clear.
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
    updates: (who is said to have sent it, update).
    wanted: what they must be of.
    registry: of the clients.
    place: client -> what it was told of the run.

  Returns:
    (client id -> what a sound update says, sender -> why his was left out).
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
  """Returns who sent an update that is signed and of this round; `ValueError` says why not."""
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
  """Returns an update of which only the sum is seen: its bytes stay bytes.

  Args:
    client: who sent it.
    update: of this client, this round and these parameters.
    sealed: what the masks gave it. Others would spoil the sum, and not be known by their bytes.

  Raises:
    ValueError: bytes of other masks or none, or metadata that cannot be.
  """
  _check_metadata(update)
  if update.data != sealed:
    raise ValueError('garbage: bytes that are not from the masks of this selection')
  slot = int.from_bytes(update.data[:4], 'little')
  message = Message(EncryptedUpdate(slot, update.data[4:]), jnp.float32(1), {})
  return Read(client, update, message, None)


def decoded(client: FederatedClient, update: FederatedUpdate, params: Any, place: Place) -> Read:
  """Returns an update with what its bytes decode to.

  Args:
    client: who sent it.
    update: of this client, this round and these parameters.
    params: of the server.
    place: of the client.

  Raises:
    ValueError: bytes or metadata that this client cannot have sent, or values that are not finite.
  """
  _check_metadata(update)
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


def _check_metadata(update: FederatedUpdate) -> None:
  said = update.metadata
  if said.num_examples < 1 or not (math.isfinite(said.loss_before) and math.isfinite(said.norm)):
    raise ValueError(f'garbage: metadata {said!r}')
