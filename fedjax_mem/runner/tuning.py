"""`execution.mode = "auto"`: the mode comes from a table, a cached measurement or a measurement.

Candidates are measured, one after another, only on a kind of device that the table does not have.
The fastest is cached for the next run. Candidates work on every device: the whole cohort side by
side, chunks of it, one client at a time.
"""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from fedjax_mem.config.parts import Parts
from fedjax_mem.core import platforms
from fedjax_mem.engine import Execution, Simulation, in_table
from fedjax_mem.runner.devices import cache_folder

BUDGET = 3.0  # seconds after which no further candidate is tried; the first always is
CANDIDATES: tuple[dict[str, Any], ...] = (
  {'mode': 'vmap'},
  {'mode': 'chunk', 'chunk': 32},
  {'mode': 'chunk', 'chunk': 8},
  {'mode': 'loop'},
)


def choose(
  execution: Execution,
  make: Callable[[Execution], Simulation],
  parts: Parts,
  key: str,
  *,
  clock: Callable[[], float] = time.perf_counter,
) -> tuple[Execution, str]:
  """Returns the execution to run with, and its source: 'asked', 'table', 'cache' or 'measured'.

  Args:
    execution: the execution that the configuration asks for.
    make: execution -> the simulation of the run with it.
    parts: of the experiment; its parameters are waited for where rounds are measured.
    key: text of all that the choice depends on: the model, the cohort, the local work.
    clock: function that returns seconds, like `time.perf_counter`.
  """
  found = known(execution, parts, key)
  if found is not None:
    return found
  pick = _fastest(execution, make, parts.params, clock)
  file = _file()
  _write(file, {**_read(file), _place(execution, key): pick})
  return dataclasses.replace(execution, **pick), 'measured'


def known(execution: Execution, parts: Parts, key: str) -> tuple[Execution, str] | None:
  """Returns what `choose` returns, or None where it would measure candidates."""
  if execution.mode != 'auto':
    return execution, 'asked'
  # Several processes must not come to different choices.
  if in_table(platforms.current(), parts.like) or jax.process_count() > 1:
    return execution, 'table'
  pick = _read(_file()).get(_place(execution, key))
  return None if pick is None else (dataclasses.replace(execution, **pick), 'cache')


def _file() -> pathlib.Path:
  return cache_folder() / 'execution.json'


def _place(execution: Execution, key: str) -> str:
  """Returns the name of a choice in the cache: the devices, and the work."""
  number = len(jax.devices()) if execution.devices == 'auto' else execution.devices
  shared = f' by {execution.model_devices}' if execution.model_devices > 1 else ''
  return f'{jax.devices()[0].device_kind} x {number}{shared}: {key}'


def _fastest(
  execution: Execution,
  make: Callable[[Execution], Simulation],
  params: Any,
  clock: Callable[[], float],
) -> dict[str, Any]:
  """Returns the candidate with the fastest second round, of those tried within `BUDGET`.

  A candidate that does not fit the memory counts as infinitely slow.
  """
  began, best, pick = clock(), math.inf, None
  for candidate in CANDIDATES:
    if pick is not None and clock() - began > BUDGET:
      break
    try:
      seconds = _second_round(make(dataclasses.replace(execution, **candidate)), params, clock)
    except jax.errors.JaxRuntimeError:
      if candidate is CANDIDATES[-1] and pick is None:
        raise
      continue
    if seconds < best:
      best, pick = seconds, candidate
  return dict(pick or CANDIDATES[-1])


def _second_round(sim: Simulation, params: Any, clock: Callable[[], float]) -> float:
  """Returns the seconds of the second round: the first includes compilation."""
  state, _ = sim.run(sim.init(params), 1)
  before = clock()
  jax.block_until_ready(sim.run(state, 1)[0])
  return clock() - before


def _read(file: pathlib.Path) -> dict[str, Any]:
  """Returns the cached choices; none if the file is damaged or has unknown contents."""
  try:
    kept = json.loads(file.read_text())
  except (OSError, ValueError):
    return {}
  sound = isinstance(kept, dict) and all(x in CANDIDATES for x in kept.values())
  return kept if sound else {}


def _write(file: pathlib.Path, kept: dict[str, Any]) -> None:
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f'{file.name}.{os.getpid()}.tmp')
    beside.write_text(json.dumps(kept, indent=2) + '\n')
    os.replace(beside, file)
  except OSError:
    pass  # without a cache the next run has to measure again, nothing else
