"""What each part of a run takes that grows: by formula and as measured, in bytes of one device.

`benchmarks.scaling --all` runs these in a process of eight host devices. A measured value is what
jax says that an array, or a compiled program, takes; no value here is a time, but for those of
secure aggregation.
"""

import argparse
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks import scale_point, secure
from fedjax_mem import data
from fedjax_mem.core import Population
from fedjax_mem.data.streaming import StreamedPopulation
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.engine.places import blocks
from fedjax_mem.engine.run import held
from fedjax_mem.kernels.loops import across
from fedjax_mem.secagg import graph
from fedjax_mem.stages.aggregate import median
from fedjax_mem.stages.compress import error_feedback, top_k

ROW = 28 * 28 + 4  # bytes of an example: uint8 pixels, an int32 label
Line = dict[str, Any]


def line(part: str, setting: str, formula: int, measured: int) -> Line:
  """Returns one row of the table."""
  return {'part': part, 'setting': setting, 'formula': int(formula), 'measured': int(measured)}


def _up_to(most: int, *numbers: int) -> list[int]:
  return [x for x in numbers if x <= most]


def populations(most: int) -> list[Line]:
  """Examples of 10,000 clients, each with 6 of its own: whole, and divided over devices."""
  clients, each = 10_000, 6
  total = clients * each
  rows = np.arange(total, dtype=np.int32)
  start = np.arange(clients, dtype=np.int32) * each
  arrays: Any = {'x': np.zeros((total, 28, 28), np.uint8), 'y': np.zeros(total, np.int32)}
  count: Any = np.full(clients, each, np.int32)
  made = Population(arrays, rows, start, count)  # type: ignore[arg-type]
  found = []
  for devices in _up_to(most, 1, 2, 8):
    mesh, divided = meshes.make_mesh(devices), devices > 1
    largest = max(b - a for a, b in blocks(clients, devices)) * each
    on = scale_point.here(held(made, mesh, divided))
    found.append(line('population', f'{devices} device(s)', largest * (ROW + 4) + 8 * clients, on))
  return found


def states(most: int) -> list[Line]:
  """A state of D values for each of 10,000 clients: error feedback."""
  found = []
  for devices in _up_to(most, 1, 2, 8):
    spec = scale_point.Spec(clients=10_000, cohort=80, devices=devices)
    sim, params = scale_point.simulation(spec, error_feedback(top_k(fraction=0.01)))
    size = sum(x.size for x in jax.tree.leaves(params))
    on = scale_point.here(sim.init(params).clients)
    formula = 4 * 10_000 * size // devices
    found.append(line('client states', f'{devices} device(s)', formula, on))
  return found


def rules(most: int) -> list[Line]:
  """All messages [C, D] on every device, as a rule needs them: beyond what a plain round takes."""
  found = []
  for cohort, devices in ((400, 1), (400, 2), (1_600, min(2, most))):
    spec = scale_point.Spec(clients=10_000, cohort=cohort, devices=devices)
    took = {}
    for name, more in (('plain', ()), ('rule', (median(),))):
      sim, params = scale_point.simulation(spec, *more)
      took[name] = sim.traced().lower().compile().memory_analysis().temp_size_in_bytes
    size = sum(x.size for x in jax.tree.leaves(params))
    setting = f'C = {cohort:,}, {devices} device(s)'
    found.append(line('cohort rule', setting, 4 * cohort * size, took['rule'] - took['plain']))
  return found


def messages(most: int) -> list[Line]:
  """The sum of D floats over n devices: what a device sends, and what it holds beside its own."""
  found = []
  for devices in _up_to(most, 2, 4, 8):
    for size in (7_850, 1_199_882):
      sent, has = _sum(devices, size)
      whole = devices * size <= across._WHOLE
      part = -(-size // devices)
      # The vector to all others; or a slice to each, and the sum of the own slice to all.
      formula = (devices - 1) * size if whole else 2 * (devices - 1) * part
      where = f'n = {devices}, D = {size:,}'
      found.append(line('sum: sent', where, 4 * formula, sent))
      # Others' vectors and the result; or the vector in slices, the others' slices, the result.
      formula = (devices + 1) * size if whole else 3 * devices * part
      found.append(line('sum: held', where, 4 * formula, has))
  return found


def _sum(devices: int, size: int) -> tuple[int, int]:
  """Returns the bytes that a device sends for the sum of vectors, and those its program holds."""
  mesh = meshes.make_mesh(devices)
  total = jax.shard_map(
    lambda x: across.total(x, meshes.AXIS),
    mesh=mesh,
    in_specs=PartitionSpec(meshes.AXIS),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  like = jax.ShapeDtypeStruct((devices * size,), jnp.float32)
  compiled = jax.jit(total).lower(like).compile()
  analysis = compiled.memory_analysis()
  return sent(
    compiled.as_text(), devices
  ), analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def sent(program: str, devices: int) -> int:
  """Returns the bytes of float32 that a device sends to others in a compiled program.

  Of what an all-gather or an all-to-all returns, a device has sent as much as it has received: all
  but its own share.
  """
  taken = 0
  for told in re.findall(r'^[^\n]*? = (.*?) (?:all-gather|all-to-all)\(', program, re.M):
    for shape in re.findall(r'f32\[([\d,]*)\]', told):
      taken += 4 * int(np.prod([int(x) for x in shape.split(',')]))
  return taken * (devices - 1) // devices


def tables(most: int) -> list[Line]:
  """What a segment says of its clients: two ids of each place of the cohort in each round."""
  del most
  found = []
  for cohort in (100, 10_000):
    sim, params = scale_point.simulation(
      scale_point.Spec(clients=100_000, cohort=cohort, devices=1)
    )
    state = jax.eval_shape(sim.init, params)
    used = np.uint32(0), np.zeros(2, np.uint32), np.int32(1)
    packed = jax.eval_shape(sim.segment, state, sim.population, *used)[1]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packed))
    setting = f'C = {cohort:,}, {sim.max_rounds} rounds a segment'
    found.append(line('cohort table', setting, 8 * cohort * sim.max_rounds, size))
  return found


def streams(most: int) -> list[Line]:
  """One of the two buffers of a streamed population: R rounds of C clients."""
  del most
  clients, each = 10_000, 6
  total = clients * each
  x, y = np.zeros((total, 28, 28), np.uint8), np.zeros(total, np.int32)
  parts = data.partition('blocks', y, clients, seed=0, examples_per_client=each)
  known = data.from_arrays(x, y, parts, num_classes=10)
  found = []
  for rounds, cohort in ((1, 100), (16, 100)):
    with StreamedPopulation(known, rounds * cohort) as stream:
      made = stream.segment(np.arange(rounds * cohort).reshape(rounds, cohort))
      formula = rounds * cohort * each * (ROW + 4) + 8 * clients
      setting = f'R = {rounds}, C = {cohort}'
      found.append(line('stream buffer', setting, formula, scale_point.here(made)))
  return found


def limits(spec: scale_point.Spec) -> Line:
  """Returns all rows, on up to `spec.devices` devices."""
  made = (populations, states, rules, messages, tables, streams)
  return {'rows': [row for each in made for row in each(spec.devices)]}


def secured(spec: scale_point.Spec) -> Line:
  """Returns the neighbours that SecAgg+ needs, and the seconds of a sum of 10,000 values."""
  args = argparse.Namespace(complete=False, corrupt=0.1, dropout=0.1)
  drawn = [graph.degree(n, corrupt=0.1, dropout=0.1) for n in (100, 300, 1_000, 10_000, 100_000)]
  numbers = (30,) if spec.seconds < 1 else (100, 300, 1_000)
  complete = argparse.Namespace(**{**vars(args), 'complete': True})
  return {
    'degrees': [dataclasses.asdict(x) for x in drawn],
    'sums': [secure.once(n, 10_000, complete if n < 100 else args) for n in numbers],
  }


MEASURED = {'limits': limits, 'secured': secured}
