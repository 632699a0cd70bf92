"""fedjax_mem: a simulator of federated learning in JAX.

Thousands of clients train in parallel, and many rounds run inside one compiled program.

    import fedjax_mem as fm

    result = fm.run(fm.load_config('quickstart'))
    result.metrics[-1]['test_accuracy']

The rooms `data`, `tasks`, `models`, `optim`, `stages`, `mechanisms`, `account` and `federated` are
attributes of this module. So is the protocol of a round: `Layer`, `Stage`, `Message`, `Task`,
`Context`, `compose` and the facts that a side of a layer may state. A method of your own needs
nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_mem._version import __version__

if TYPE_CHECKING:
  from fedjax_mem import account, data, federated, mechanisms, models, optim, stages, tasks
  from fedjax_mem.config.load import Config, load_config
  from fedjax_mem.core import (
    Attacks,
    Bound,
    Bounds,
    Broadcasts,
    Context,
    Covered,
    Draw,
    Draws,
    Encodes,
    Fact,
    IncompatibleStages,
    Integers,
    Layer,
    Looks,
    Masks,
    Mean,
    Mechanism,
    Member,
    Message,
    Noises,
    Pools,
    Prepares,
    Rescales,
    Round,
    Rule,
    Scores,
    Stage,
    Task,
    Total,
    Trains,
    Weighs,
    Withholds,
    compose,
  )
  from fedjax_mem.engine import Applied, Execution, Simulation, apply, simulate
  from fedjax_mem.runner.ending import Result
  from fedjax_mem.runner.loading import Loaded, export, load
  from fedjax_mem.runner.loop import Interrupted, RunFailed, resume, run
  from fedjax_mem.runner.planning import DoesNotFit, Plan, plan
  from fedjax_mem.runner.trackers import Tracker
  from fedjax_mem.studies.audit import audit
  from fedjax_mem.studies.sweeps.sweep import sweep

__all__ = (
  'Applied',
  'Attacks',
  'Bound',
  'Bounds',
  'Broadcasts',
  'Config',
  'Context',
  'Covered',
  'DoesNotFit',
  'Draw',
  'Draws',
  'Encodes',
  'Execution',
  'Fact',
  'IncompatibleStages',
  'Integers',
  'Interrupted',
  'Layer',
  'Loaded',
  'Looks',
  'Masks',
  'Mean',
  'Mechanism',
  'Member',
  'Message',
  'Noises',
  'Plan',
  'Pools',
  'Prepares',
  'Rescales',
  'Result',
  'Round',
  'Rule',
  'RunFailed',
  'Scores',
  'Simulation',
  'Stage',
  'Task',
  'Total',
  'Tracker',
  'Trains',
  'Weighs',
  'Withholds',
  '__version__',
  'account',
  'apply',
  'audit',
  'compose',
  'data',
  'export',
  'federated',
  'load',
  'load_config',
  'mechanisms',
  'models',
  'optim',
  'plan',
  'resume',
  'run',
  'simulate',
  'stages',
  'sweep',
  'tasks',
)

# Imported on first use, so that `fedjax-mem --help` need not import jax.
_ROOMS = ('account', 'data', 'federated', 'mechanisms', 'models', 'optim', 'stages', 'tasks')
_HOMES = {
  'Applied': 'engine',
  'apply': 'engine',
  'audit': 'studies.audit',
  'Config': 'config.load',
  'DoesNotFit': 'runner.planning',
  'Execution': 'engine',
  'Interrupted': 'runner.loop',
  'Loaded': 'runner.loading',
  'Plan': 'runner.planning',
  'Result': 'runner.ending',
  'RunFailed': 'runner.loop',
  'Simulation': 'engine',
  'Tracker': 'runner.trackers',
  'export': 'runner.loading',
  'load': 'runner.loading',
  'load_config': 'config.load',
  'plan': 'runner.planning',
  'resume': 'runner.loop',
  'run': 'runner.loop',
  'simulate': 'engine',
  'sweep': 'studies.sweeps.sweep',
}


def __getattr__(name: str) -> Any:
  if name in _ROOMS:
    return importlib.import_module(f'{__name__}.{name}')
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES.get(name, "core")}'), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
