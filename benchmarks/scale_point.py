"""One point of `benchmarks.scaling --all`, in a process of its own; a JSON line.

    python -m benchmarks.scale_point '{"kind": "rounds", "work": "W3", "clients": 1000, ...}'

Kinds: `rounds` times rounds; `sums` times them with the sum over devices in their order, by `psum`,
and without one; every other kind is a measurement of `benchmarks.scale_limits`. With `processes`
this is one of several: `process` is its number, `coordinator` where they meet. Process 0 prints.

The examples are drawn, so nothing has to be prepared: 600 images of noise, which the clients' index
lists repeat. A time of theirs is that of real ones, an accuracy means nothing.
"""

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from benchmarks import measure, serve, works
from fedjax_mem import models
from fedjax_mem.core import Layer, Population
from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.engine import Execution, Simulation, simulate
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.kernels.loops import across
from fedjax_mem.runner import devices

STORED = 600  # images
SEGMENTS = (5, 40)  # that are timed: at least, at most
# How the sums of floats of all devices become one. Without a sum each device goes on with its own,
# and what it computes means nothing: it is there to be timed.
SUMS = {
  'in order': across.joined,
  'psum': lambda mine, axis, join: jax.lax.psum(mine, axis),
  'none': lambda mine, axis, join: mine,
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """What one point measures.

  Attributes:
    kind: 'rounds', 'sums', or a measurement of `scale_limits`.
    work: name of the work whose model and local training it has.
    clients: N; None: the work's.
    cohort: C; None: the work's.
    hidden: width of the hidden layer of an `mlp` in place of the work's model, or None.
    devices: host devices of each process.
    data: as `execution.data`.
    seconds: that are measured, about.
    processes: of the cluster; 1: there is none.
    process: the number of this one.
    coordinator: 'host:port' of process 0.
  """

  kind: str = 'rounds'
  work: str = 'W3'
  clients: int | None = None
  cohort: int | None = None
  hidden: int | None = None
  devices: int = 1
  data: str = 'auto'
  seconds: float = 2.0
  processes: int = 1
  process: int = 0
  coordinator: str = ''


def begin(spec: Spec) -> None:
  """Settles the host devices of this process, and its cluster if it has one."""
  devices.prepare(spec.devices)
  if spec.processes > 1:
    jax.distributed.initialize(spec.coordinator, spec.processes, spec.process)


def described(spec: Spec) -> works.Work:
  """Returns the work of a point."""
  work = works.WORKS[spec.work]
  return dataclasses.replace(
    work,
    num_clients=spec.clients or work.num_clients,
    cohort=spec.cohort or work.cohort,
    model='mlp' if spec.hidden else work.model,
  )


def population(work: works.Work) -> Population:
  """Returns N clients, on the host: `work.examples` each, of a few images that all share."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (STORED, 28, 28), np.uint8)
  y = rng.integers(0, 10, STORED, np.int32)
  number = np.arange(work.num_clients, dtype=np.int32)
  index = np.arange(work.num_clients * work.examples, dtype=np.int64) % STORED
  count = np.full_like(number, work.examples)
  held: Any = ({'x': x, 'y': y}, index.astype(np.int32), number * work.examples, count)
  return Population(*held)


def simulation(spec: Spec, *more: Layer) -> tuple[Simulation, Any]:
  """Returns the simulation of a point, and its initial parameters."""
  work, shape = described(spec), (28, 28, 1)
  options = {'hidden': (spec.hidden,)} if spec.hidden else {}
  model = models.build(work.model, shape, 10, **options)
  params = model.init(jax.random.key(0))
  sim = simulate(
    works.layers(work, model, *more),
    params,
    population(work),
    execution=Execution(pool=False, data=spec.data, devices=spec.devices * spec.processes),
    max_rounds=serve.SEGMENT,
    transforms=(Inputs(shape, 255.0),),
  )
  return sim, params


def agreed(value: float) -> float:
  """Returns the value of process 0, on all processes: they must run the same rounds."""
  if jax.process_count() == 1:
    return value
  return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def here(values: Any) -> int:
  """Returns the bytes of arrays on the first device of this process."""
  first = jax.local_devices()[0]
  shards = [s for x in jax.tree.leaves(values) for s in x.addressable_shards]
  return sum(s.data.nbytes for s in shards if s.device == first)


def timed(sim: Simulation, params: Any, seconds: float) -> tuple[list[float], float]:
  """Returns the seconds of a round, segment after segment, and those of compiling."""
  state = sim.init(params)
  began = time.perf_counter()
  state = jax.block_until_ready(sim.compile(state))
  compiling = time.perf_counter() - began
  state, _ = serve.timed(sim, state, 1)  # to warm up
  state, first = serve.timed(sim, state, 1)
  first = agreed(first)
  rounds = int(np.clip(seconds / SEGMENTS[1] / first, 1, serve.SEGMENT))
  times = []
  for _ in range(int(np.clip(seconds / rounds / first, *SEGMENTS))):
    state, each = serve.timed(sim, state, rounds)
    times.append(each)
  return times, compiling


def rounds(spec: Spec) -> dict[str, Any]:
  """Returns how fast a round is."""
  sim, params = simulation(spec)
  times, compiling = timed(sim, params, spec.seconds)
  return {
    'rounds_per_s': round(1 / float(np.median(times)), 3),
    **measure.spread(np.array(times), 6),
    'segments': len(times),
    'compile_s': round(compiling, 2),
    'params': sum(x.size for x in jax.tree.leaves(params)),
    'population_bytes': here(sim.population),
    'peak_rss_mb': round(measure.peak_rss_mb()),
  }


@contextlib.contextmanager
def summed(how: str) -> Iterator[None]:
  """Traces programs, within, in which the sums of devices become one as `SUMS` has it."""
  with mock.patch.object(across, 'joined', SUMS[how]):
    yield


def exchanges(sim: Simulation) -> int:
  """Returns how many exchanges between devices the program of a segment has."""
  text = sim.traced().lower().compile().as_text()
  return len(re.findall(r' (?:all-gather|all-reduce|all-to-all|collective-permute)\(', text))


def latency(sim: Simulation) -> list[float]:
  """Returns the seconds of one exchange of 250 floats: 10th percentile, median and 90th.

  Devices wait in each for the slowest, and on cores that others use for its turn.
  """
  mesh, times = sim.setting.layout.mesh, 20
  add = jax.shard_map(
    lambda x: jax.lax.fori_loop(0, times, lambda i, x: jax.lax.psum(x, meshes.AXIS) / 2, x),
    mesh=mesh,
    in_specs=PartitionSpec(),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  one = meshes.put(np.ones(250, np.float32), meshes.replicated(mesh))
  program = jax.jit(add)
  jax.block_until_ready(program(one))
  took = measure.seconds(lambda: program(one), 40) / times
  return [round(float(x), 7) for x in np.percentile(took, (10, 50, 90))]


def sums(spec: Spec) -> dict[str, Any]:
  """Returns the seconds of a round by the way in which devices sum, segments of all in turn."""
  built: dict[str, Any] = {}
  for how in SUMS:
    with summed(how):
      sim, params = simulation(spec)
      state = jax.block_until_ready(sim.compile(sim.init(params)))
      state, _ = serve.timed(sim, state, 1)
      state, first = serve.timed(sim, state, 1)
      built[how] = [sim, state, agreed(first)]
  longest = max(first for _, _, first in built.values())
  rounds = int(np.clip(spec.seconds / SEGMENTS[1] / longest, 1, serve.SEGMENT))
  times: dict[str, list[float]] = {how: [] for how in SUMS}
  for number in range(int(np.clip(spec.seconds / rounds / longest / len(SUMS), *SEGMENTS))):
    # Each is first as often as the others, so that what drifts favours none.
    for how in np.roll(list(SUMS), number).tolist():
      sim, state, _ = built[how]
      built[how][1], each = serve.timed(sim, state, rounds)
      times[how].append(each)
  arrays = {how: np.array(x) for how, x in times.items()}
  return {
    'params': sum(x.size for x in jax.tree.leaves(params)),
    'exchanges': exchanges(built['in order'][0]),
    'exchange_s': latency(built['in order'][0]),
    'rounds_a_segment': rounds,
    'segments': len(times['none']),
    **{how: measure.spread(x, 6) for how, x in arrays.items()},
    'psum_over_none': ratio(arrays['psum'], arrays['none']),
    'in_order_over_none': ratio(arrays['in order'], arrays['none']),
    'in_order_over_psum': ratio(arrays['in order'], arrays['psum']),
  }


def ratio(more: np.ndarray, less: np.ndarray) -> list[float]:
  """Returns the 10th percentile, median and 90th of the ratios of seconds, turn by turn."""
  return [round(float(x), 4) for x in np.percentile(more / less, (10, 50, 90))]


def main() -> None:
  """Measures the point that the command line describes."""
  spec = Spec(**json.loads(sys.argv[1]))
  begin(spec)
  if spec.kind in ('rounds', 'sums'):
    facts = {'rounds': rounds, 'sums': sums}[spec.kind](spec)
  else:
    from benchmarks import scale_limits  # it takes from here

    facts = scale_limits.MEASURED[spec.kind](spec)
  if spec.process == 0:
    print(json.dumps(facts), flush=True)
  if spec.processes > 1:
    multihost_utils.sync_global_devices('done')


if __name__ == '__main__':
  main()
