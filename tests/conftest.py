"""What every test runs under: eight host CPU devices and strict promotion of ranks and dtypes."""

import sys
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
# `reference` and `contract` hold helpers that tests import; the package need not be installed.
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

# Before anything starts jax: afterwards the number of devices is settled.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

STRICT = ('core', 'kernels', 'engine', 'stages', 'optim', 'contract', 'reference', 'statistical')


def pytest_addoption(parser):
  parser.addoption(
    '--stage',
    action='append',
    default=[],
    metavar='package.module:factory',
    help='run the contract suite on this factory, and only on those given (repeatable)',
  )


def pytest_configure(config):
  config.addinivalue_line(
    'markers', 'standard_promotion: mixed dtypes are allowed, as in optax.adam or a model'
  )
  config.addinivalue_line('markers', 'slow: takes more than about ten seconds')


@pytest.fixture(autouse=True)
def _dtype_promotion(request):
  """Refuses mixed dtypes in the rooms that declare theirs; `standard_promotion` opts out."""
  room = request.path.relative_to(HERE).parts[0] if HERE in request.path.parents else ''
  strict = room in STRICT and request.node.get_closest_marker('standard_promotion') is None
  with jax.numpy_dtype_promotion('strict' if strict else 'standard'):
    yield


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Frees the programs that a file's tests compiled: over the whole suite they are gigabytes."""
  yield
  jax.clear_caches()
