"""What every test runs under: the tiers, the devices, the shared cache and what tests share.

`pytest` alone runs the default tier, which takes a newcomer some minutes; `--all` adds the tests
that are marked slow and every method in every mode; `--rest` runs only what the default leaves out.
docs/testing.md says what is where.
"""

import gc
import resource
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
# `reference` and `contract` hold helpers that tests import; the package need not be installed.
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from reference import compiling, tiers  # noqa: E402

pytest_plugins = ('reference.experiments',)

MOST_MEMORY = 3 * 10**9  # bytes of a test process, beyond which it frees programs

# Where a test may mix dtypes: rooms that do not declare theirs, and whole runs.
STANDARD = (
  *('account', 'cli', 'config', 'data', 'federated', 'models', 'report', 'runner', 'studies'),
  'system',
)


def pytest_addoption(parser):
  group = parser.getgroup('fedjax_mem')
  group.addoption('--all', action='store_true', help='also slow tests, and every mode of a method')
  group.addoption(
    '--rest',
    action='store_true',
    help='only what is left out without --all; with more than 2 devices, the contract and layouts',
  )
  group.addoption(
    '--sample',
    action='store_true',
    help='a part of the default tier that takes a minute, for further interpreters',
  )
  group.addoption(
    '--turn',
    metavar='I/N',
    help='of tests with parameters every N-th, from the I-th on: one of N runs that share them',
  )
  group.addoption('--optimized', action='store_true', help='compile as users do; takes longer')
  group.addoption('--devices', type=int, default=2, metavar='N', help='forced host CPU devices')
  for option, made in (
    ('stage', 'factory'), ('mechanism', 'Class'), ('codec', 'factory')
  ):  # fmt: skip
    group.addoption(
      f'--{option}',
      action='append',
      default=[],
      metavar=f'package.module:{made}',
      help=f'run the contract of a {option} on this, and only on those given (repeatable)',
    )


def pytest_configure(config):
  for line in (
    'standard_promotion: mixed dtypes are allowed, as in optax.adam or a model',
    'slow: left out of the default tier; run with --all',
    'first(k): the default tier has the first k parameters of this test',
    'devices(n): layouts on several devices; left out where there are fewer than n',
  ):
    config.addinivalue_line('markers', line)
  if not 2 <= config.getoption('--devices') <= 8:
    raise pytest.UsageError(f'--devices must be 2 to 8, got {config.getoption("--devices")}')
  _turn(config)
  # Before anything starts jax: afterwards the number of devices is settled.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', config.getoption('--devices'))
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  if not config.getoption('--optimized'):
    compiling.quickly()
  compiling.shared(compiling.cache_folder())
  # Tracing makes millions of small objects, nearly none of them in cycles.
  gc.set_threshold(100_000, 20, 50)


def pytest_collection_modifyitems(config, items):
  """Keeps the tier that is asked for, and what there are devices for."""
  from contract import suite

  tier = {'every': config.getoption('--all'), 'rest': config.getoption('--rest')}
  devices = config.getoption('--devices')
  asked = {file: config.getoption(option) for file, option in suite.KINDS.items()}
  seen: Counter[str] = Counter()
  files: set[str] = set()
  kept, left = [], []
  for item in items:
    if 'on devices' in item.nodeid:
      item.add_marker(pytest.mark.devices(2))
    test = tiers.Test(
      _slow(item, seen),
      max((m.args[0] for m in item.iter_markers('devices')), default=1),
      _folder(item),
      item.path.name == 'test_contract.py',
    )
    wanted = tiers.runs(test, devices, **tier)
    if wanted and config.getoption('--sample'):
      wanted = tiers.sampled(test, item.nodeid, files, suite.FIRST)
    if any(asked.values()):  # all that the suite asks, and nothing else
      wanted = bool(asked.get(item.path.name)) and test.needed <= devices
    (kept if wanted else left).append(item)
  turn = _turn(config)
  if turn is not None:
    names = tiers.in_turn((item.nodeid for item in kept), *turn)
    left += [item for item in kept if item.nodeid not in names]
    kept = [item for item in kept if item.nodeid in names]
  if left:
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _turn(config) -> tuple[int, int] | None:
  """Returns (which run, of how many) that `--turn` asks for."""
  given = config.getoption('--turn')
  if given is None:
    return None
  turn, _, turns = given.partition('/')
  if not (turn.isdecimal() and turns.isdecimal() and 1 <= int(turn) <= int(turns)):
    raise pytest.UsageError(f'--turn must be I/N with 1 <= I <= N, got {given}')
  return int(turn) - 1, int(turns)


def _folder(item) -> str:
  """Returns the folder of `tests/` that a test is in; another's is as one of whole runs."""
  return item.path.relative_to(HERE).parts[0] if HERE in item.path.parents else 'system'


def _slow(item, seen: Counter[str]) -> bool:
  """Returns whether the default tier leaves a test out; `seen` counts parameters of a test."""
  if item.get_closest_marker('slow') is not None:
    return True
  first = item.get_closest_marker('first')
  if first is None:
    return False
  test = item.nodeid.partition('[')[0]
  seen[test] += 1
  return seen[test] > first.args[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Keeps the tests of a file in one process, and in the contract suite those of a case.

  They share what they compile. The suite is one file that would keep one process busy alone.
  """
  from xdist.scheduler import LoadFileScheduling

  if config.getvalue('dist') != 'load':  # the user wants another
    return None

  class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid):
      file, _, test = nodeid.partition('::')
      if not file.endswith('test_contract.py') or '[' not in test:
        return file
      return f'{file}[{tiers.case(nodeid)}'

  return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _dtype_promotion(request):
  """Refuses mixed dtypes in the rooms that declare theirs; `standard_promotion` opts out."""
  room = _folder(request)
  room = request.path.relative_to(HERE).parts[1] if room == 'unit' else room
  strict = room not in STANDARD and request.node.get_closest_marker('standard_promotion') is None
  with jax.numpy_dtype_promotion('strict' if strict else 'standard'):
    yield


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Frees compiled programs once they are many: over the whole suite they are gigabytes.

  Not after each file: the small ones, of single operations, are the same in most of them.
  """
  yield
  if _resident() > MOST_MEMORY:
    jax.clear_caches()


def _resident() -> float:
  """Returns the bytes that this process has in memory; where nobody tells, infinity."""
  try:
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
  except OSError:
    return float('inf')


@pytest.fixture(scope='session')
def _compiled():
  seen: list[str] = []
  told = ('backend_compile', 'cache_retrieval')
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **kwargs: seen.append(event) if any(x in event for x in told) else None
  )
  return seen


@pytest.fixture
def compilations(_compiled):
  """Returns the list that every compilation is appended to."""
  _compiled.clear()
  return _compiled
