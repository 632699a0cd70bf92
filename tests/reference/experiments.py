"""What tests of experiments share: a tiny experiment, a user's own layers, processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

TINY = """
version = 1
name = 'tiny'
rounds = 6

[data]
name = 'digits'
num_clients = 12

[model]
name = 'logistic'

[client]
batch_size = 20

[selection]
cohort_size = 4

[execution]
devices = 1
"""

# Layers as a researcher would write them, in a module of his own.
LAYERS = """
import jax
import jax.numpy as jnp

from fedjax_mem.core import Bound, Bounds, Layer, Stage, tree

CHANGES = Bounds(lambda ctx, bound: Bound(), 'it changes what is sent')


def counting(size=3):
  # What a client has done before changes what it sends: forgetting it would show.
  def apply(ctx, message, state):
    state = state + 1
    update = tree.scale(1 + 0.01 * state.mean(), message.update)
    return message._replace(update=update), state, {'rounds': state.mean()}

  return Layer('counting', client=Stage(apply, lambda ctx: jnp.zeros(size), (CHANGES,)))


def nan_clients(ids, start=0):
  # These clients send NaN from round `start` (from 0) on.
  def apply(ctx, message, state):
    bad = (ctx.client.id == jnp.array(ids)).any() & (ctx.round >= start)
    update = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), message.update)
    return message._replace(update=update), state, {}

  return Layer('nan_clients', client=Stage(apply, facts=(CHANGES,)))


def nan_server(round):
  # The sum becomes infinite in that round (from 0).
  def apply(ctx, message, state):
    update = jax.tree.map(
      lambda x: jnp.where(ctx.round == round, jnp.inf, x), message.update
    )
    return message._replace(update=update), state, {}

  return Layer('nan_server', server=Stage(apply))


number = 3
"""


@pytest.fixture(scope='session', autouse=True)
def _apart(tmp_path_factory):
  """Keeps the user's cache and flags out of the tests and of the processes that they start."""
  jax.devices()  # all of them, before a run settles on fewer
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('FEDJAX_MEM_CACHE', str(tmp_path_factory.mktemp('cache')))
    patch.delenv('XLA_FLAGS', raising=False)
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # nor do those optimize
    # Processes of the package's own write as jax does, in place: not into what all tests share.
    patch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    yield


@pytest.fixture(scope='session')
def layers(tmp_path_factory):
  """The folder of the user's module `user_layers`, importable here and in new processes."""
  folder = tmp_path_factory.mktemp('user')
  (folder / 'user_layers.py').write_text(LAYERS)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    known = os.environ.get('PYTHONPATH')
    patch.setenv('PYTHONPATH', f'{folder}{os.pathsep}{known}' if known else str(folder))
    yield folder


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves the plots of a run empty: drawing them takes as long as the run."""
  from fedjax_mem.report import figures

  monkeypatch.setattr(figures, 'png', lambda *args, **options: b'\x89PNG')


@pytest.fixture
def tiny(tmp_path):
  """The file of a tiny experiment."""
  path = tmp_path / 'tiny.toml'
  path.write_text(TINY)
  return path


@pytest.fixture
def make(tiny):
  """Returns the tiny experiment with overrides 'section.key=value'."""
  from fedjax_mem.config.load import load_config

  return lambda *overrides: load_config(tiny, overrides)


@pytest.fixture
def start():
  """Starts `fedjax-mem` as a process of its own; what still runs at the end is killed."""
  processes = []

  def begin(*words, **env):
    process = subprocess.Popen(
      [sys.executable, '-m', 'fedjax_mem.cli.main', *map(str, words)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=Path(__file__).parents[2],
      env={**os.environ, **env},
    )
    processes.append(process)
    return process

  yield begin
  for process in processes:
    if process.poll() is None:
      process.kill()
      process.communicate()


@pytest.fixture
def state_of():
  """Returns what the newest checkpoint of a run's folder holds, name -> array."""
  import orbax.checkpoint as ocp

  def read(folder):
    manager = ocp.CheckpointManager(Path(folder).absolute() / 'checkpoints')
    with manager:
      args = ocp.args.Composite(state=ocp.args.StandardRestore())
      return manager.restore(manager.latest_step(), args=args).state

  return read


def one_line(err):
  """Returns the one line that a command says of what is wrong."""
  assert err.startswith('fedjax-mem: ') and err.endswith('\n') and err.count('\n') == 1
  assert 'Traceback' not in err
  return err


def only(out):
  """Returns the one run folder in `out`."""
  (folder,) = out.iterdir()
  return folder
