"""What a client sends: its update and facts beside it, signed as a whole."""

import dataclasses
import struct
from typing import Annotated, Any, NamedTuple, TypeVar

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.federated import identity

_METADATA = struct.Struct('<qddd?qqd')  # the bytes that are signed
_PRESENT = struct.Struct('<8?')  # which fields are sent
T = TypeVar('T')
# What depends on a client's examples and gets no noise; None where it stays with the client.
Uncovered = Annotated[T | None, NOT_COVERED]


class Metadata(NamedTuple):
  """Facts that a client reports beside its update.

  Those of the type `Uncovered` depend on its examples and get no noise: no ε covers them. Under
  secure aggregation they stay with the client, and are None.

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

  num_examples: Uncovered[int]
  loss_before: Uncovered[float]
  loss_after: Uncovered[float]
  norm: Uncovered[float]
  clipped: Uncovered[bool]
  bytes: int
  dense_bytes: int
  seconds: Uncovered[float]


def packed(metadata: Metadata) -> bytes:
  """Returns the bytes of metadata that are signed: which fields are sent, and their values."""
  present = _PRESENT.pack(*(x is not None for x in metadata))
  return present + _METADATA.pack(*(0 if x is None else x for x in metadata))


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
      metadata = packed(self.metadata)
      return identity.statement(
        self.run_id, self.client_id, self.round, self.model_hash, self.data, metadata
      )
    except (AttributeError, TypeError, ValueError, struct.error) as error:
      raise identity.Unauthentic(f'malformed: {error}') from error
