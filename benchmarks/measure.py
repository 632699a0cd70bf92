"""How the benchmarks measure: fenced, compilation apart, medians; and this machine's own limits."""

import pathlib
import re
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.engine import Simulation


def seconds(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Returns the seconds of each call, [repeats]; a call ends when its arrays are there."""
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return np.array(times)


def spread(times: np.ndarray, digits: int = 4) -> dict[str, float]:
  """Returns the median and the 10th and 90th percentiles of seconds, rounded to these digits."""
  low, middle, high = (round(float(x), digits) for x in np.percentile(times, [10, 50, 90]))
  return {'median_s': middle, 'p10_s': low, 'p90_s': high}


def gemm_peak_gflops(size: int = 2048, repeats: int = 8) -> float:
  """Returns the best float32 matrix product of XLA or NumPy on all cores, in 10**9 operations/s."""
  rng = np.random.default_rng(0)
  a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
  x, y = jnp.asarray(a), jnp.asarray(b)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, y))
  # The devices of this process share its cores: one product a device, at the same time.
  devices = jax.devices()
  placed = [(jax.device_put(x, d), jax.device_put(y, d)) for d in devices]
  each = lambda: [product(p, q) for p, q in placed]
  jax.block_until_ready(each())
  best = [
    1 / seconds(lambda: product(x, y), repeats).min(),
    len(devices) / seconds(each, repeats).min(),
    1 / seconds(lambda: a @ b, repeats).min(),
  ]
  return 2 * size**3 * max(best) / 1e9


def peak_rss_mb() -> float:
  """Returns the peak resident memory of this process, in 10**6 bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def tree_peak_mb(pid: int) -> float:
  """Returns the peak resident memory of a process and its descendants, in 10**6 bytes.

  Each at its own peak, added up; what they share counts for each. Linux only.
  """
  task = pathlib.Path(f'/proc/{pid}')
  (peak,) = re.findall(r'VmHWM:\s*(\d+) kB', (task / 'status').read_text())
  children = ' '.join(path.read_text() for path in task.glob('task/*/children')).split()
  return int(peak) * 1024 / 1e6 + sum(tree_peak_mb(int(child)) for child in children)


def in_turn(
  simulations: Mapping[str, tuple[Simulation, Any]], segments: int
) -> dict[str, np.ndarray]:
  """Returns the seconds of a round [segments] of each simulation, run segment by segment in turns.

  Args:
    simulations: name -> (simulation, initial parameters); its longest segments are run.
    segments: how many of each are timed; one more comes before, to warm up.
  """
  states = {name: sim.compile(sim.init(params)) for name, (sim, params) in simulations.items()}
  seconds: dict[str, list[float]] = {name: [] for name in simulations}
  for number in range(segments + 1):
    for name, (sim, _) in simulations.items():
      began = time.perf_counter()
      states[name], _ = sim.run(states[name], sim.max_rounds)
      jax.block_until_ready(states[name])
      if number:
        seconds[name].append((time.perf_counter() - began) / sim.max_rounds)
  return {name: np.array(times) for name, times in seconds.items()}


def overhead(plain: np.ndarray, more: np.ndarray) -> dict[str, Any]:
  """Returns what `more` seconds [S] cost over `plain` ones [S], segments run in turns."""
  return {
    **spread(more),
    'overhead': round(float(np.median(more) / np.median(plain)) - 1, 3),
    'overhead_of_pairs': round(float(np.median(more / plain)) - 1, 3),
  }
