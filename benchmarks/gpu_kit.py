"""What the parts of `benchmarks.gpu_check` share: a part's time and file, the card's rates."""

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure

# Vendors' data sheets, dense, in 10**12 operations/s: float32, and TF32 on matrix units (None: it
# has none). The first name within `device_kind` counts. For a card that is not listed the measured
# matrix product takes their place.
PEAKS: dict[str, tuple[float, float | None]] = {
  'H200': (66.9, 494.7),
  'H100 PCIe': (51.2, 378.0),
  'H100': (66.9, 494.7),
  'A100': (19.5, 156.0),
  'V100': (15.7, None),
  'T4': (8.1, None),
}


class Part:
  """One part's time and its file.

  Attributes:
    small: shapes for a CPU.
  """

  def __init__(self, name: str, small: bool, budget: float, out: pathlib.Path | None):
    self.small, self._out = small, out
    self._ends = time.monotonic() + budget
    self._began = time.monotonic()
    self._record: dict[str, Any] = {'part': name, 'small': small, 'complete': False, **card()}

  @property
  def left(self) -> float:
    """Seconds that are left."""
    return self._ends - time.monotonic()

  def add(self, **facts: Any) -> None:
    """Adds facts of the whole part."""
    self._record |= facts
    self._write()

  def items(self, todo: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """Runs items in their order, each for itself, while there is time."""
    done = self._record.setdefault('items', {})
    for name, run in todo.items():
      if self.left <= 0:
        self._record.setdefault('left_out', []).append(name)
        self._write()
        continue
      began = time.monotonic()
      try:
        done[name] = run()
      except Exception as error:  # whatever it is, the others may do
        done[name] = {'failed': f'{type(error).__name__}: {error}'[:300]}
      done[name]['took_s'] = round(time.monotonic() - began, 1)
      print(json.dumps({'item': name, **done[name]}), flush=True)
      self._write()

  def end(self) -> None:
    """Marks the part as done."""
    self.add(complete=True, seconds=round(time.monotonic() - self._began, 1))

  def _write(self) -> None:
    if self._out:
      beside = self._out.with_suffix('.tmp')
      beside.write_text(json.dumps(self._record, indent=1) + '\n')
      os.replace(beside, self._out)


def card() -> dict[str, Any]:
  """Returns what the computations run on."""
  device = jax.devices()[0]
  facts = {
    'platform': device.platform,
    'device_kind': device.device_kind,
    'jax': jax.__version__,
    'runtime': ' '.join(device.client.platform_version.split())[:200],
  }
  query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  try:
    told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    return {**facts, 'driver': told.stdout.split('\n')[0].strip()}
  except (OSError, subprocess.SubprocessError):
    return facts


def peaks(small: bool) -> dict[str, Any]:
  """Returns the card's rates in 10**12 operations/s, from its data sheet and measured here.

  `reference` is that which `mfu` divides by: float32 products may be taken as TF32 where there are
  units for it, as jax does by default.
  """
  size = 256 if small else 8192
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(2))
  facts: dict[str, Any] = {}
  for precision in ('default', 'highest'):
    product = jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))
    jax.block_until_ready(product(a, b))
    best = measure.seconds(lambda f=product: f(a, b), 8).min()
    facts[f'gemm_{precision}'] = round(2 * size**3 / best / 1e12, 3)
  kind = jax.devices()[0].device_kind
  found = next((rates for name, rates in PEAKS.items() if name in kind), None)
  if found:
    facts |= {'float32': found[0], 'tf32': found[1]}
  facts['reference'] = (found and (found[1] or found[0])) or facts['gemm_default']
  return facts
