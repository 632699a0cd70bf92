"""The public parameters of one secure sum, on which all parties agree before it begins."""

import dataclasses
import functools

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.secagg import graph, primitives

MODES = ('semi_honest', 'active')
MAX_CLIENTS = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """The public parameters of one sum; every message is bound to the digest of all of them.

  Attributes:
    name: fresh random bytes, 16 or more, agreed by all; never used for another sum.
    degree: n, k and t, from `graph.degree` or, for all pairs, `graph.complete`. The ids of the n
      clients are 0 to n - 1. In every round t clients have to be present: of all n or, with k
      neighbours, of each client's neighbours and itself. In active mode t > 2 n / 3, and all pairs,
      since the server chooses the seed of the graph.
    size: D, number of integers of each client.
    bound: largest magnitude of these integers; n * bound < 2 ** (bits - 1), so that the sum of all
      cannot overflow. A client refuses larger values of its own. No party can check the values of
      another client.
    bits: b, 16, 32 or 64; sums are modulo 2 ** b, and D * b / 8 bytes are sent.
    mode: 'semi_honest': four rounds. The server and up to t - 1 clients may pool what they see but
      follow the protocol, and the channels to the server are authentic (TLS). It does not protect
      against a server that sends clients different facts, such as different survivors.
      'active': five rounds. Messages are signed by identities that all know, and clients answer
      only to a set of survivors that t of them have signed. The updates are protected from a server
      that deviates in any way; the sum is correct only if all follow the protocol.
    graph_seed: 16 bytes or more, with a sparse graph; `graph` documents what is assumed of it.
    identities: [n] Ed25519 public keys, in active mode; known to all from outside the protocol.

  Raises:
    ValueError: an argument is out of range, or does not fit the others.
  """

  name: bytes
  degree: graph.Degree
  size: int
  bound: int
  bits: int = 32
  mode: str = 'semi_honest'
  graph_seed: bytes = b''
  identities: tuple[bytes, ...] = ()

  def __post_init__(self) -> None:
    """Checks the parameters."""
    if not isinstance(self.degree, graph.Degree):
      raise ValueError(
        f'degree must be a Degree, as graph.degree or graph.complete returns it, got '
        f'{self.degree!r}.'
      )
    n = validate.integer(at_most=MAX_CLIENTS, num_clients=self.num_clients)
    validate.integer(size=self.size)
    validate.one_of(MODES, mode=self.mode)
    if not isinstance(self.name, bytes) or len(self.name) < 16:
      raise ValueError(f'name must be 16 or more random bytes, got {self.name!r}.')
    if self.bits not in (16, 32, 64):
      raise ValueError(f'bits must be 16, 32 or 64, got {self.bits!r}.')
    most = (2 ** (self.bits - 1) - 1) // n
    if most < 1:
      raise ValueError(f'bits must be more for {n} clients, got {self.bits!r}.')
    validate.integer(at_most=most, bound=self.bound)
    self._check_graph()
    self._check_identities()

  def _check_graph(self) -> None:
    n, k, t = self.num_clients, self.neighbours, self.threshold
    if self.active and k is not None:
      raise ValueError(f"neighbours must be None in mode 'active', got {k!r}: use all pairs.")
    if self.active and 3 * t <= 2 * n:
      raise ValueError(
        f"threshold must be above 2/3 of num_clients = {n} in mode 'active', got {t!r}."
      )
    seed = self.graph_seed
    if k is not None and (not isinstance(seed, bytes) or len(seed) < 16):
      raise ValueError('graph_seed must be 16 or more bytes for a sparse graph, got fewer.')

  def _check_identities(self) -> None:
    known = self.identities
    if self.mode == 'semi_honest':
      if known:
        raise ValueError("identities must be left out in mode 'semi_honest': nothing is signed.")
      return
    if len(known) != self.num_clients or len(set(known)) != len(known):
      raise ValueError(f'identities must be {self.num_clients} distinct keys, got {len(known)}.')
    if any(not isinstance(k, bytes) or len(k) != primitives.KEY_BYTES for k in known):
      raise ValueError(f'identities must be public keys of {primitives.KEY_BYTES} bytes.')

  @property
  def num_clients(self) -> int:
    """Number of clients, n."""
    return self.degree.num_clients

  @property
  def neighbours(self) -> int | None:
    """Number of neighbours of each client, k; None: all others."""
    return self.degree.neighbours

  @property
  def threshold(self) -> int:
    """Least number of clients present in every round, t."""
    return self.degree.threshold

  @functools.cached_property
  def digest(self) -> bytes:
    """The SHA-256 of the name and all other parameters, 32 bytes."""
    numbers = (self.num_clients, self.threshold, self.size, self.bound, self.bits)
    text = repr((*numbers, self.mode, self.neighbours)).encode()
    return primitives.digest(b'session', self.name, text, self.graph_seed, *self.identities)

  @functools.cached_property
  def _rows(self) -> np.ndarray:
    if self.neighbours is None:
      return np.arange(self.num_clients)[None]
    return graph.neighbourhoods(self.num_clients, self.neighbours, self.graph_seed)

  def holders(self, client: int) -> np.ndarray:
    """Returns the ids of the holders of a client's shares, ascending: its neighbours and itself."""
    row: np.ndarray = self._rows[0 if self.neighbours is None else client]
    return row

  @property
  def active(self) -> bool:
    """Whether the mode is 'active': messages are signed, and clients agree on the survivors."""
    return self.mode == 'active'

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the values as sent: unsigned integers of b bits, little-endian."""
    return np.dtype(f'<u{self.bits // 8}')
