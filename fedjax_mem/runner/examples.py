"""The source of a run's examples: all on the device, or streamed for each segment of rounds."""

import math

import jax
import numpy as np

from fedjax_mem.core import Population, Round, Shape, State
from fedjax_mem.data.source import FederatedData
from fedjax_mem.data.streaming import StreamedPopulation, must_stream
from fedjax_mem.engine import Simulation
from fedjax_mem.engine.mesh import replicated

_MB = 10**6
_MOST = float(2**62)  # bytes: more than any data have


class Source:
  """Examples that are on the device all the time.

  Attributes:
    population: the population that the simulation is planned with.
    shape: static facts about the population.
    max_rounds: rounds in the longest segment.
  """

  def __init__(self, population: Population, shape: Shape, max_rounds: int):
    self.population, self.shape, self.max_rounds = population, shape, max_rounds

  def ahead(self, sim: Simulation, state: State, rounds: int) -> Population | None:
    """Returns the examples of the next `rounds` rounds; None: the simulation has them already."""
    del sim, state, rounds
    return None

  def close(self) -> None:
    """Ends background work: here there is none."""


class Streamed(Source):
  """Examples of the clients that the next segment will draw, gathered while the last one runs.

  If the draw depends on what earlier rounds return (`feedback`), a segment is one round and its
  examples are gathered after the round before.
  """

  def __init__(
    self,
    data: FederatedData,
    shape: Shape,
    cap_bytes: float,
    max_rounds: int,
    feedback: bool,
    cohort: int,
  ):
    rounds = 1 if feedback else max_rounds
    while rounds > 1 and 2 * StreamedPopulation(data, rounds * cohort).nbytes > cap_bytes:
      rounds = -(-rounds // 2)
    self._stream = StreamedPopulation(data, rounds * cohort)
    if 2 * self._stream.nbytes > cap_bytes:
      raise ValueError(
        'execution.stream_above_mb must hold two segments of one round, '
        f'{2 * self._stream.nbytes / _MB:.3g} MB, got {cap_bytes / _MB:g}.'
      )
    self._feedback, self._begun = feedback, False
    empty = self._stream.segment(np.zeros((1, 0), np.int32))
    super().__init__(empty, shape, rounds)

  def ahead(self, sim: Simulation, state: State, rounds: int) -> Population | None:
    """Returns the examples of the next `rounds` rounds, and starts to gather those after them."""
    if self._feedback:  # the draw after the next depends on the next round's results
      population = self._stream.segment(np.asarray(sim.cohorts(state, 1)))
    else:
      ids = np.asarray(sim.cohorts(state, 2 * self.max_rounds))
      population = self._stream.take() if self._begun else self._stream.segment(ids[:rounds])
      self._stream.prefetch(ids[rounds : rounds + self.max_rounds])
      self._begun = True
    held: Population = jax.device_put(population, replicated(sim.setting.layout.mesh))
    return held

  def close(self) -> None:
    """Ends the background thread."""
    self._stream.close()


def source(
  data: FederatedData,
  layers: Round,
  cap_mb: float | None,
  max_rounds: int,
) -> Source:
  """Returns the source of a run's examples.

  Args:
    data: the clients' examples, on the host.
    layers: layers of the round; the sampler's fact says how many clients a round draws.
    cap_mb: megabytes (10**6 bytes) above which examples are streamed; None: never.
    max_rounds: rounds in the longest segment, if memory does not limit them.

  Raises:
    ValueError: the cap does not hold two segments of one round.
  """
  counts = data.counts
  shape = Shape(data.num_clients, int(counts.max()), bool((counts == counts[0]).all()))
  if cap_mb is None or not must_stream(data, math.ceil(min(cap_mb * _MB, _MOST))):
    return Source(data.population(), shape, max_rounds)
  return Streamed(data, shape, cap_mb * _MB, max_rounds, not layers.blind, layers.draws.capacity)
