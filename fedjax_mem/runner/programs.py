"""The programs that a run compiles, known before any is."""

import functools
from typing import NamedTuple

import jax

from fedjax_mem.config.load import Config
from fedjax_mem.config.parts import Parts
from fedjax_mem.core import Personal
from fedjax_mem.engine import Simulation
from fedjax_mem.engine.mesh import of_model
from fedjax_mem.runner import ledgers, tuning

# What jax reports for each program that it compiles, or finds in its cache on the disk.
COMPILES = '/jax/core/compile/backend_compile_duration'


class Program(NamedTuple):
  """A kind of program that a run compiles.

  Attributes:
    what: what it is for.
    name: its name in the compiler's log, after `jit_`.
    least: how many are compiled, at least.
    most: how many at most; as `least` where that is known.
  """

  what: str
  name: str
  least: int = 1
  most: int = 1


def of_run(
  config: Config, parts: Parts, made: Simulation, *, drawn: bool, streamed: bool, measured: bool
) -> tuple[Program, ...]:
  """Returns what a new run compiles, in a process of its own.

  Args:
    config: the experiment.
    parts: of it.
    made: its rounds.
    drawn: whether it draws its initial parameters.
    streamed: whether its examples are streamed.
    measured: whether it measures candidates of `execution.mode = "auto"`.
  """
  layers, found = parts.layers, []
  if drawn:
    found.append(Program('initial parameters', '<lambda>'))
  if made.setting.layout.mesh.devices.flat[0].platform == 'cpu':
    asked = 2 if of_model(made.setting.layout.mesh) > 1 else 1
    found.append(Program("which of the compiler's options it knows", '<lambda>', asked, asked))
  if measured:
    most = len(tuning.CANDIDATES)
    found.append(Program('initial state of a candidate', 'initial_state', 1, most))
    found.append(Program('segment of a candidate', '_segment', 1, most))
  found += [Program('initial state', 'initial_state'), Program('segment of rounds', '_segment')]
  found.append(Program('evaluation on the test set', 'share'))
  if parts.data.held is not None:
    found.append(Program('evaluation on what clients hold out', 'share'))
  opened = ledgers.open_ledgers(config, layers, parts.data.counts, made.setting.specs)
  ahead = set()  # each number of rounds is a program of its own
  if opened is not None and opened.local:
    ahead.add(made.max_rounds if layers.blind else 1)
  if streamed:
    ahead.add(2 * made.max_rounds if layers.blind else 1)
  if ahead:
    found.append(Program('clients of the next rounds', 'peek', len(ahead), len(ahead)))
  if layers.having(Personal):
    found.append(Program('mean of what clients keep', 'mean'))
  return tuple(found)


def of_resume(made: Simulation) -> tuple[Program, ...]:
  """Returns what a resumed run compiles besides what a new one does."""
  return (Program('noise drawn again', 'drawn_again'),) if made.claims else ()


class Compiled:
  """Counts what this process compiles.

  Attributes:
    number: programs so far, those found in a cache on the disk among them.
  """

  def __init__(self) -> None:
    self.number = 0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, duration_secs: float, **more: str | int) -> None:
    del duration_secs, more
    self.number += event == COMPILES


@functools.cache
def compiled() -> Compiled:
  """Returns the counter: jax has no public way to end one, so there is one a process."""
  return Compiled()
