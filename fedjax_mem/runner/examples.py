"""The source of a run's examples: all on the device, or streamed for each segment of rounds."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_mem.core import Population, Round, Shape, State
from fedjax_mem.data.source import FederatedData
from fedjax_mem.data.streaming import StreamedPopulation, must_stream
from fedjax_mem.engine import Simulation, apart
from fedjax_mem.engine.mesh import AXIS, put, replicated
from fedjax_mem.engine.places import blocks

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
    mesh: Mesh | None,
  ):
    rounds = 1 if feedback else max_rounds
    divided = {} if mesh is None else _divided(data, mesh)

    def stream(rounds: int) -> StreamedPopulation:
      return StreamedPopulation(data, rounds * cohort, **divided)

    while rounds > 1 and 2 * stream(rounds).nbytes > cap_bytes:
      rounds = -(-rounds // 2)
    self._stream, self._apart = stream(rounds), mesh is not None
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
    if self._apart:
      return population
    held: Population = put(population, replicated(sim.setting.layout.mesh))
    return held

  def close(self) -> None:
    """Ends the background thread."""
    self._stream.close()


def _divided(data: FederatedData, mesh: Mesh) -> dict[str, Any]:
  """Returns what makes a stream one for devices that have the examples of their own clients."""
  like = {
    name: jax.ShapeDtypeStruct(x.shape[1:], np.asarray(x[:0]).dtype)
    for name, x in data.arrays.items()
  }

  def place(part: Any, size: int, start: np.ndarray, count: np.ndarray) -> Population:
    return apart.assemble(part, (size, size), like, start, count, mesh)

  return {'blocks': blocks(data.num_clients, mesh.shape[AXIS]), 'place': place}


def source(
  data: FederatedData,
  layers: Round,
  cap_mb: float | None,
  max_rounds: int,
  mesh: Mesh | None = None,
  held: bool = True,
) -> Source:
  """Returns the source of a run's examples.

  Args:
    data: the clients' examples, on the host.
    layers: layers of the round; the sampler's fact says how many clients a round draws.
    cap_mb: megabytes (10**6 bytes) above which examples are streamed; None: never.
    max_rounds: rounds in the longest segment, if memory does not limit them.
    mesh: the devices, if each has the examples of its own clients only.
    held: False: of examples that are divided once for all, only their shapes.

  Raises:
    ValueError: the cap does not hold two segments of one round.
  """
  counts = data.counts
  shape = Shape(data.num_clients, int(counts.max()), bool((counts == counts[0]).all()))
  if cap_mb is None or not must_stream(data, math.ceil(min(cap_mb * _MB, _MOST))):
    if mesh is None:
      return Source(data.population(), shape, max_rounds)
    divide = apart.divide if held else apart.shapes
    return Source(divide(data.host_population(), mesh), shape, max_rounds)
  cohort, feedback = layers.draws.capacity, not layers.blind
  return Streamed(data, shape, cap_mb * _MB, max_rounds, feedback, cohort, mesh)
