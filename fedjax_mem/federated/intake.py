"""What the server makes of a client's update once its signature is known to be good."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Message, tree
from fedjax_mem.federated import compression
from fedjax_mem.federated.client import FederatedClient, FederatedUpdate, Place
from fedjax_mem.federated.secure import EncryptedUpdate
from fedjax_mem.stages.compress import codec as codecs


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
