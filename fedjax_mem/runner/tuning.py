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
_CANDIDATES: tuple[dict[str, Any], ...] = (
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
  if execution.mode != 'auto':
    return execution, 'asked'
  # Several processes must not come to different choices.
  if in_table(platforms.current(), parts.like) or jax.process_count() > 1:
    return execution, 'table'
  number = len(jax.devices()) if execution.devices == 'auto' else execution.devices
  shared = f' by {execution.model_devices}' if execution.model_devices > 1 else ''
  place = f'{jax.devices()[0].device_kind} x {number}{shared}: {key}'
  file = cache_folder() / 'execution.json'
  kept = _read(file)
  if place in kept:
    return dataclasses.replace(execution, **kept[place]), 'cache'
  pick = _fastest(execution, make, parts.params, clock)
  _write(file, {**kept, place: pick})
  return dataclasses.replace(execution, **pick), 'measured'


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
  for candidate in _CANDIDATES:
    if pick is not None and clock() - began > BUDGET:
      break
    try:
      seconds = _second_round(make(dataclasses.replace(execution, **candidate)), params, clock)
    except jax.errors.JaxRuntimeError:
      if candidate is _CANDIDATES[-1] and pick is None:
        raise
      continue
    if seconds < best:
      best, pick = seconds, candidate
  return dict(pick or _CANDIDATES[-1])


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
  sound = isinstance(kept, dict) and all(x in _CANDIDATES for x in kept.values())
  return kept if sound else {}


def _write(file: pathlib.Path, kept: dict[str, Any]) -> None:
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f'{file.name}.{os.getpid()}.tmp')
    beside.write_text(json.dumps(kept, indent=2) + '\n')
    os.replace(beside, file)
  except OSError:
    pass  # without a cache the next run has to measure again, nothing else
