"""A stage of somebody else's module goes through the contract by `--stage`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract import suite

MODULE = '''
import jax.numpy as jnp
from fedjax_mem.core import Layer, Stage, tree, validate


def halve(factor=0.5):
  """A layer that keeps the contract."""
  validate.positive(factor=factor)
  client = lambda ctx, m, s: (m._replace(update=tree.scale(factor, m.update)), s + 1, {})
  return Layer('halve', client=Stage(client, lambda ctx: jnp.int32(0)))


def careless(factor=0.5):
  """One that checks nothing and mistakes a sum over the cohort for its own."""
  def client(ctx, m, s):
    size = ctx.client.id.size * ctx.cohort.id.size  # padding counts, so chunks change the result
    return m._replace(update=tree.scale(1 / size, m.update)), s, {}

  return Layer('careless', client=Stage(client))


def needy(mystery):
  return halve()
'''


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'theirs.py').write_text(MODULE)
  root = Path(__file__).parents[2]

  def contract(stage):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(root), str(tmp_path)])}
    env.pop('PYTEST_ADDOPTS', None)
    words = ['tests/contract/test_contract.py', '-q', '-p', 'no:cacheprovider', '--stage', stage]
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', *words], cwd=root, env=env, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr

  return contract


@pytest.mark.slow
def test_a_stage_that_keeps_the_contract_passes(run):
  code, told = run('theirs:halve')
  assert code == 0 and 'failed' not in told, told
  assert int(told.split(' passed')[0].split()[-1]) >= 14, told


@pytest.mark.slow
def test_one_that_does_not_is_told_where(run):
  code, told = run('theirs:careless')
  assert code == 1
  assert 'test_every_execution_gives_the_same[theirs:careless-chunk on devices]' in told
  assert 'test_a_bad_argument_is_refused_by_name[theirs:careless-factor]' in told


def test_what_cannot_be_loaded_or_called_says_so(monkeypatch, tmp_path):
  (tmp_path / 'elsewhere.py').write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  for name in ('elsewhere', 'elsewhere:nothing', 'nowhere:halve'):
    with pytest.raises(pytest.UsageError, match=f'must be package.module:factory, got {name!r}'):
      suite.cases([name])
  with pytest.raises(pytest.UsageError, match="argument 'mystery' of elsewhere:needy; wrap"):
    suite.cases(['elsewhere:needy'])
  (case,) = suite.cases(['elsewhere:halve'])
  assert case.make(factor=0.25).name == 'halve'


def test_a_stage_without_a_line_in_the_table_is_found(monkeypatch):
  from fedjax_mem.stages import weigh

  monkeypatch.setitem(weigh.WEIGHINGS, 'new', weigh.equal)
  assert 'new' in suite.registries()['WEIGHINGS'] and 'new' not in suite.IN_TREE['WEIGHINGS']
