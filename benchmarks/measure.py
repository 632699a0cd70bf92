"""How the benchmarks measure: fenced, compilation apart, medians; and this machine's own limits."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seconds(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Returns the seconds of each call, [repeats]; a call ends when its arrays are there."""
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return np.array(times)


def spread(times: np.ndarray) -> dict[str, float]:
  """Returns the median and the 10th and 90th percentiles of seconds, rounded to 0.1 ms."""
  low, middle, high = np.percentile(times, [10, 50, 90])
  return {'median_s': round(middle, 4), 'p10_s': round(low, 4), 'p90_s': round(high, 4)}


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
