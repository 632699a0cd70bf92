"""The parts of `benchmarks.gpu_check`: what is run on an accelerator, and what is told of it."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import conv as layers
from benchmarks import kernels, measure, stand_ins, works
from benchmarks.gpu_kit import Part, peaks
from benchmarks.rounds import write
from fedjax_mem import models
from fedjax_mem.core import tree
from fedjax_mem.engine import Execution, Simulation, describe, simulate

# Those that say most come first: time may run out.
ORDER = ('W1', 'W3', 'W4', 'M1', 'L1', 'T1', 'D1', 'R1', 'E1', 'W2')
CLIENTS = (('W3', 1_000), ('W3', 10_000), ('M1', 1_000), ('W1', 1_000), ('M1', 10_000))
KERNELS = ('top_k', 'quantize_8', 'quantize_4_blocks', 'rotate', 'eden_2', 'noise')
SIZE = 10**8  # values of a kernel's vector: the smallest that no cache of today's cards holds
BESIDE = 50  # clients whose convolutions run side by side
# Of the small form, where compiling is nearly all the work.
SHALLOW = {
  'resnet_gn': {'blocks': (1, 1), 'width': 8},
  'transformer': {'blocks': 1, 'width': 16},
  'char_lstm': {'width': 16},
}


def memory() -> dict[str, Any]:
  """Returns the most memory that this process has had on the device, if the device tells."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get('peak_bytes_in_use')
  return {'peak_mb_so_far': round(peak / 1e6)} if peak else {}


def shrunk(work: works.Work) -> works.Work:
  """Returns a work with few and small clients: two, of a batch and a half."""
  batch = min(work.batch_size, 4)
  return dataclasses.replace(
    work, num_clients=4, cohort=2, epochs=1, batch_size=batch, examples=batch + batch // 2
  )


def build(
  work: works.Work, *, execution: Execution | None = None, rounds: int = 1, shallow: bool = False
) -> tuple[Simulation, Any, str]:
  """Returns (simulation of a work, its initial parameters, what its examples are)."""
  population, source = stand_ins.load(work)
  options = SHALLOW.get(work.model, {}) if shallow else {}
  model = models.build(work.model, population.input_shape, population.num_classes, **options)
  params = jax.jit(model.init)(jax.random.key(0))
  sim = simulate(
    works.layers(work, model),
    params,
    population.population(),
    execution=execution,
    max_rounds=rounds,
    transforms=(population.preprocess,),
    noise_seed=0,
  )
  return sim, params, source


def timed(sim: Simulation, params: Any, seconds: float) -> dict[str, Any]:
  """Returns the seconds of a round: of at least three segments, for so long, of 0.1 s or more."""
  began = time.perf_counter()
  state, _ = sim.run(sim.init(params), 1)
  jax.block_until_ready(state)
  first = time.perf_counter() - began

  def segment(state: Any, rounds: int) -> tuple[Any, float]:
    began = time.perf_counter()
    state, _ = sim.run(state, rounds)
    jax.block_until_ready(state)
    return state, (time.perf_counter() - began) / rounds

  state, once = segment(state, 1)
  rounds = int(np.clip(0.1 / once, 1, sim.max_rounds))
  times: list[float] = []
  began = time.perf_counter()
  while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 30):
    state, each = segment(state, rounds)
    times.append(each)
  finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
  return {
    'median_s': round(float(np.median(times)), 6),
    'least_s': round(min(times), 6),
    'first_round_s': round(first, 2),
    'rounds': len(times) * rounds,
    'finite': finite,
  }


def engine(part: Part) -> None:
  """Runs rounds on the device in every mode, and compares them with the same rounds on a CPU."""
  there: dict[str, Any] = {}

  def on_a_cpu() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / 'results.npz'
      command = [sys.executable, '-m', 'benchmarks.gpu_check', 'reference', '--out', str(file)]
      command += ['--small'] * part.small
      quiet = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
      subprocess.run(command, env=quiet, check=True, timeout=max(part.left, 1))
      there.update(np.load(file))
    return {'results': len(there)}

  def compared(name: str, mode: str) -> dict[str, Any]:
    found, _ = results(name, mode, part.small)
    if not there:
      return {'equal': None, 'finite': bool(np.isfinite(found['params']).all())}
    expected = there[f'{name}.params']
    off = float(
      np.linalg.norm(found['params'] - expected) / np.linalg.norm(there[f'{name}.change'])
    )
    cohorts = bool((found['cohorts'] == there[f'{name}.cohorts']).all())
    # Rounding of float32 alone, through a few steps: both are told to multiply in full precision.
    return {'equal': cohorts and off < 1e-3, 'difference': float(f'{off:.3g}'), 'cohorts': cohorts}

  part.items(
    {'cpu': on_a_cpu}
    | {
      f'{name} {mode}': lambda n=name, m=mode: compared(n, m)
      for name in compared_works(part.small)
      for mode in ('vmap', 'loop')
    }
  )


def compared_works(small: bool) -> tuple[str, ...]:
  """Returns the works whose results are compared."""
  return ('W3',) if small else ('W3', 'W1')


def results(name: str, mode: str, small: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns a small work's parameters [D] and cohorts after three rounds, and its change [D]."""
  whole = works.WORKS[name]
  work = shrunk(whole) if small else dataclasses.replace(whole, num_clients=32, cohort=8)
  flat = lambda params: np.asarray(tree.ravel(params), np.float64)
  with jax.default_matmul_precision('highest'):
    sim, params, _ = build(work, execution=Execution(mode=mode, devices=1, pool=False), rounds=3)
    state = sim.init(params)
    cohorts = np.asarray(sim.cohorts(state, 3))
    state, _ = sim.run(state, 3)
  after = flat(state.params)
  return {'params': after, 'cohorts': cohorts}, after - flat(params)


def reference(out: pathlib.Path, small: bool) -> None:
  """Keeps the results of `results` on this process's platform in a file."""
  kept = {}
  for name in compared_works(small):
    found, change = results(name, 'loop', small)
    kept |= {f'{name}.{key}': x for key, x in found.items()} | {f'{name}.change': change}
  np.savez(out, **kept)


def ten_works(part: Part) -> None:
  """Times a round of each work, and divides its operations a second by the card's peak."""
  rates = peaks(part.small)
  part.add(peaks_tflops=rates)

  def one(name: str, number: int) -> dict[str, Any]:
    work = shrunk(works.WORKS[name]) if part.small else works.WORKS[name]
    sim, params, source = build(work, rounds=64, shallow=part.small)
    share = 0 if part.small else min(3.0, part.left / (len(ORDER) - number) / 4)
    figures = timed(sim, params, share)
    tflops = work.gflop / figures['median_s'] / 1e3
    return {
      **figures,
      'examples': source,
      'execution': describe(sim.setting.layout),
      'samples_per_s': round(work.samples / figures['median_s']),
      'model_tflops': float(f'{tflops:.4g}'),
      'mfu': float(f'{tflops / rates["reference"]:.3g}'),
      **memory(),
    }

  part.items({x: lambda x=x, i=i: one(x, i) for i, x in enumerate(ORDER)})


def clients(part: Part) -> None:
  """Times rounds of very many clients, all side by side."""

  def one(name: str, count: int) -> dict[str, Any]:
    work = works.WORKS[name]
    if part.small:
      work, count = shrunk(work), count // 500
    work = dataclasses.replace(work, num_clients=count, cohort=count)
    sim, params, _ = build(work, execution=Execution(mode='vmap', devices=1, pool=False), rounds=16)
    figures = timed(sim, params, 0 if part.small else 2.0)
    return {**figures, 'clients_per_s': round(count / figures['median_s']), **memory()}

  todo = CLIENTS[1:3] if part.small else CLIENTS
  part.items({f'{name} x {n:,}': lambda name=name, n=n: one(name, n) for name, n in todo})


def convolutions(part: Part) -> None:
  """Times both ways to convolve with weights of each client's own: which is faster, and by shape.

  `rows` is what `kernels.nn.conv.ELSEWHERE` should have on this platform.
  """
  beside, batch = (2, 2) if part.small else (BESIDE, 20)
  ways = {way: {'method': way, 'layout': 'HWBC'} for way in ('lax', 'gemm')}
  found: list[tuple[int, dict[str, float]]] = []

  def one(name: str) -> dict[str, Any]:
    side, channels, out, window, first = layers.LAYERS[name]
    side, rng = (min(side, 10) if part.small else side), np.random.default_rng(0)
    end = side - window + 1
    normal = lambda *shape: jnp.asarray(rng.normal(size=(beside, *shape)), jnp.float32)
    kernel = 0.1 * normal(window, window, channels, out)
    x, g = normal(side, side, batch, channels), normal(end, end, batch, out)
    runs = {}
    for way, options in ways.items():
      step = jax.jit(jax.vmap(layers.steps_of(options, first)))
      jax.block_until_ready(step(kernel, x, g))
      runs[way] = lambda step=step: step(kernel, x, g)
    turns = [[measure.seconds(run, 1)[0] for run in runs.values()] for _ in range(5)]
    middle = np.median(turns, axis=0) / layers.STEPS * 1e3
    times = dict(zip(runs, (round(float(ms), 4) for ms in middle), strict=True))
    found.append((channels, times))
    part.add(rows=rows(jax.default_backend(), found))
    return {'channels': channels, **{f'{way}_ms': ms for way, ms in times.items()}}

  names = ('lenet/conv_1', 'square/8') if part.small else layers.LAYERS
  part.add(clients=beside, batch=batch)
  part.items({name: lambda name=name: one(name) for name in names})


def rows(platform: str, found: list[tuple[int, dict[str, float]]]) -> list[list[Any]]:
  """Returns rows for the table `kernels.nn.conv.ELSEWHERE`: (platform, most channels, method).

  Of layers with equally many input channels the method with the least time in all is taken. The
  last row has no limit (null).

  >>> rows('gpu', [(4, {'lax': 2.0, 'gemm': 1.0}), (8, {'lax': 1.0, 'gemm': 2.0})])
  [['gpu', 4, 'gemm'], ['gpu', None, 'lax']]
  """
  totals: dict[int, dict[str, float]] = {}
  for channels, times in found:
    whole = totals.setdefault(channels, dict.fromkeys(times, 0.0))
    for way, ms in times.items():
      whole[way] += ms
  table: list[list[Any]] = []
  for channels in sorted(totals):
    way = min(totals[channels], key=totals[channels].__getitem__)
    if table and table[-1][2] == way:
      table[-1][1] = channels
    else:
      table.append([platform, channels, way])
  if table:
    table[-1][1] = None
  return table


def of_kernels(part: Part) -> None:
  """Times kernels in bytes a second, beside a stream copy."""
  size, repeats = (10**4, 3) if part.small else (SIZE, 9)
  # The obvious ways are left out: some of them take long, or much memory, at this size.
  one = lambda name: kernels.measure(name, size, repeats, plain=False)
  part.items({name: lambda name=name: one(name) for name in KERNELS})


def peers(part: Part) -> None:
  """Times PyTorch on the same works and device, where it is installed."""
  try:
    import torch

    from benchmarks.peers import torch_device
  except ImportError as error:
    part.add(left_out=[f'all: {error}'])
    return
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  part.add(torch=torch.__version__, device=device)
  if part.small:  # the operations are too small to be divided
    torch.set_num_threads(1)

  def one(name: str, kind: type[torch_device.Loop]) -> dict[str, Any]:
    work = shrunk(works.WORKS[name]) if part.small else works.WORKS[name]
    with tempfile.TemporaryDirectory() as folder:
      write(pathlib.Path(folder), work, stand_ins.load(work)[0])
      return torch_device.seconds(kind, pathlib.Path(folder), device, 0 if part.small else 2.0)

  kinds = {'side by side': torch_device.Stacked, 'one by one': torch_device.Loop}
  # The steps of W4 one by one take longest.
  order = sorted(ORDER, key=lambda name: name == 'W4')
  part.items(
    {
      f'{name} {how}': lambda name=name, kind=kind: one(name, kind)
      for name in order
      for how, kind in kinds.items()
      if kind is torch_device.Loop or torch_device.stacks(works.WORKS[name])
    }
  )


PARTS: dict[str, Callable[[Part], None]] = {
  'engine': engine,
  'works': ten_works,
  'clients': clients,
  'conv': convolutions,
  'kernels': of_kernels,
  'peers': peers,
}
