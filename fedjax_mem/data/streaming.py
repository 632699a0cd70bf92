"""A population larger than memory: only the clients of the next segment are on the device.

The flat arrays of `flat.py` are memory-mapped, not read. A segment gathers its clients' rows into a
buffer of fixed size, so that one compiled program serves all segments. `prefetch` does so in the
background while the previous segment runs.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from fedjax_mem.core import Population, validate
from fedjax_mem.data.preprocess import row_bytes
from fedjax_mem.data.source import FederatedData, aligned_zeros, placed


def must_stream(data: FederatedData, cap_bytes: int) -> bool:
  """Returns whether a population takes more than `cap_bytes` on the device.

  >>> data = fm.data.load('digits', partition='iid', num_clients=10)
  >>> data.nbytes, must_stream(data, 10**6), must_stream(data, 10**5)
  (103616, False, True)

  Args:
    data: N clients.
    cap_bytes: bytes, >= 1.
  """
  return data.nbytes > validate.integer(cap_bytes=cap_bytes)


# (device -> (arrays, index), rows of a part, start [N], count [N]) -> a population
Part = Callable[[int], tuple[dict[str, np.ndarray], np.ndarray]]
Place = Callable[[Part, int, np.ndarray, np.ndarray], Population]


def _largest(counts: np.ndarray, clients: int) -> int:
  """Returns the examples of so many clients, at most."""
  return int(np.sort(counts)[::-1][:clients].sum())


class StreamedPopulation:
  """The examples of one segment's clients at a time; rounds give the same bits as with all clients.

  Args:
    data: N clients; their arrays may be memory-mapped.
    clients_per_segment: largest number of distinct clients in a segment: R x C.
    blocks: [first, last) of the clients of each device, whose examples it alone has; None: one
      device, or the same for all.
    place: puts the parts of all devices there: (device -> (rows of its clients, their index), rows
      of a part, start [N], count [N]) -> a population.

  Raises:
    ValueError: a segment may need 2**31 rows or more.
  """

  def __init__(
    self,
    data: FederatedData,
    clients_per_segment: int,
    blocks: list[tuple[int, int]] | None = None,
    place: Place | None = None,
  ):
    validate.integer(clients_per_segment=clients_per_segment)
    self._data, self._place = data, place
    self._most = min(clients_per_segment, data.num_clients)
    self._blocks = blocks or [(0, data.num_clients)]
    self.capacity = max(_largest(data.counts[a:b], self._most) for a, b in self._blocks)
    if self.capacity > np.iinfo(np.int32).max:
      raise ValueError(
        f'clients_per_segment must need fewer than 2**31 examples, got {clients_per_segment}: '
        f'{self.capacity} examples.'
      )
    self._index = placed(np.arange(self.capacity, dtype=np.int32))
    self._count = placed(np.asarray(data.counts, np.int32))
    self._pool = ThreadPoolExecutor(1, 'prefetch')
    self._pending: Future[Population] | None = None

  @property
  def nbytes(self) -> int:
    """Bytes of a segment's buffer; two exist while one is prefetched."""
    return self.capacity * (row_bytes(self._data.arrays) + 4) + 8 * self._data.num_clients

  def segment(self, client_ids: np.ndarray) -> Population:
    """Returns the population of a segment, on the device.

    Args:
      client_ids: [R, C] integers, the clients of each round; ids >= N are padding.

    Returns:
      arrays [capacity, ...]; index [capacity] = 0, 1, …; start [N]; count [N]. Clients that are not
      in the segment have start 0: their rows must not be used.

    Raises:
      ValueError: an id is negative or no integer, or there are more than `clients_per_segment`
        distinct clients.
    """
    clients = self._distinct(client_ids)
    start = np.zeros(self._data.num_clients, np.int32)
    some = [clients[(clients >= a) & (clients < b)] for a, b in self._blocks]
    counts = self._data.counts
    for ids in some:
      start[ids] = np.cumsum(counts[ids]) - counts[ids]
    if self._place is not None:
      return self._place(lambda device: self._part(some[device]), self.capacity, start, counts)
    arrays = {name: jax.device_put(x) for name, x in self._part(clients)[0].items()}
    return Population(arrays, self._index, jax.device_put(start), self._count)

  def _part(self, clients: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns (name -> [capacity, ...] with the clients' rows, index [capacity])."""
    data = self._data
    counts = data.counts[clients]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = data.index[np.repeat(data.offsets[clients], counts) + within]
    arrays = {}
    for name, stored in data.arrays.items():
      buffer = aligned_zeros((self.capacity, *stored.shape[1:]), stored.dtype)
      np.take(stored, rows, axis=0, out=buffer[: len(rows)], mode='clip')
      arrays[name] = buffer
    return arrays, np.arange(self.capacity, dtype=np.int32)

  def _distinct(self, client_ids: np.ndarray) -> np.ndarray:
    ids = np.asarray(client_ids)
    if not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
      raise ValueError(f'client_ids must be integers >= 0, got {ids.dtype} from {ids.min()}.')
    clients = np.unique(ids[ids < self._data.num_clients])
    if len(clients) > self._most:
      raise ValueError(
        f'client_ids must be at most {self._most} distinct clients, got {len(clients)}.'
      )
    return clients

  def prefetch(self, client_ids: np.ndarray) -> None:
    """Starts to gather a segment in the background; `take` returns it.

    Raises:
      ValueError: the segment started before has not been taken.
    """
    if self._pending is not None:
      raise ValueError('prefetch must be followed by take before the next prefetch, got neither.')
    self._pending = self._pool.submit(self.segment, np.array(client_ids))

  def take(self) -> Population:
    """Returns the segment that `prefetch` started, after waiting for it if necessary.

    Raises:
      ValueError: no segment was started, or as `segment`.
    """
    if self._pending is None:
      raise ValueError('take must follow prefetch, got no segment begun.')
    pending, self._pending = self._pending, None
    return pending.result()

  def close(self) -> None:
    """Ends the background thread."""
    self._pool.shutdown(wait=True, cancel_futures=True)

  def __enter__(self) -> 'StreamedPopulation':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()
