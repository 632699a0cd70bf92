"""fedjax_mem: a simulator of federated learning in JAX.

Thousands of clients are trained at once, whole rounds run inside one compiled program.

    import fedjax_mem as fm

    result = fm.run(fm.load_config('configs/quickstart.toml'))
    result.metrics[-1]['test_accuracy']

The parts are in the submodules: `core` (the protocol of a round), `stages`, `optim`, `engine`,
`data`, `models`, `experiment`, `report`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_mem._version import __version__

if TYPE_CHECKING:
  from fedjax_mem import federated
  from fedjax_mem.core import onion
  from fedjax_mem.engine import Execution, Simulation, simulate
  from fedjax_mem.experiment.config import Config, load_config
  from fedjax_mem.experiment.loop import Interrupted, Result, RunFailed, resume, run

__all__ = (
  'Config',
  'Execution',
  'Interrupted',
  'Result',
  'RunFailed',
  'Simulation',
  '__version__',
  'federated',
  'load_config',
  'onion',
  'resume',
  'run',
  'simulate',
)

# Imported when they are first asked for, so that `fedjax-mem --help` need not start jax.
_HOMES = {
  'Config': 'experiment.config',
  'Execution': 'engine',
  'Interrupted': 'experiment.loop',
  'Result': 'experiment.loop',
  'RunFailed': 'experiment.loop',
  'Simulation': 'engine',
  'load_config': 'experiment.config',
  'onion': 'core',
  'resume': 'experiment.loop',
  'run': 'experiment.loop',
  'simulate': 'engine',
}


def __getattr__(name: str) -> Any:
  if name == 'federated':
    return importlib.import_module(f'{__name__}.federated')
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES, 'federated'})
