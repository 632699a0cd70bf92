"""The programs that a run compiles: those that a fresh process then reports, by name."""

import collections
import json
import os
import subprocess
import sys

import pytest

from fedjax_mem.config.load import load_config
from fedjax_mem.runner import programs
from fedjax_mem.runner.planning import plan

# Runs an experiment with an empty cache, and prints what was compiled, a name a program.
RUN = """
import json, sys
import jax

names = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, duration, **more: names.append(more['fun_name']) if event == sys.argv[1] else None
)
import fedjax_mem as fm
from fedjax_mem.report import figures

figures.png = lambda *args, **options: b'PNG'  # compiles nothing, and takes longer than the run
fm.run(fm.load_config(sys.argv[2], sys.argv[4:]), sys.argv[3], quiet=True)
print(json.dumps(names))
"""
NAMED = ('<lambda>', 'initial_state', '_segment', 'share', 'peek', 'mean', 'drawn_again')


def compiled(folder, config, *overrides):
  """Returns the names of all programs that a run in a fresh process compiles, and how often."""
  told = subprocess.run(
    [sys.executable, '-c', RUN, programs.COMPILES, config, str(folder / 'runs'), *overrides],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, 'FEDJAX_MEM_CACHE': str(folder / 'cache')},
  )
  names = json.loads(told.stdout.splitlines()[-1])
  return collections.Counter(x.removeprefix('jit(').removesuffix(')') for x in names)


def planned(found):
  """Returns the names of a plan's programs, and how often."""
  names = collections.Counter()
  for x in found.programs:
    assert x.least == x.most
    names[x.name] += x.least
  return names


CASES = {
  'quickstart': ('quickstart',),
  'privacy': ('digits_poisson',),
  'clients held out': ('quickstart', 'evaluation.clients=0.2'),
  'streamed': ('quickstart', 'execution.stream_above_mb=0.07'),
  'local noise': ('tests/oracle/stacks/private_local.toml',),
  'a robust rule': ('tests/oracle/stacks/robust_median_sign_flip.toml',),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_a_run_compiles_the_programs_of_its_plan_and_no_other(tmp_path, case):
  config, *overrides = CASES[case]
  overrides += ['rounds=3', 'evaluation.every=2']
  found = plan(load_config(config, overrides))
  assert compiled(tmp_path, config, *overrides) == planned(found)


# Plans a run in a fresh process, and prints how many operations its factories compile.
PLAN = """
import sys
import fedjax_mem as fm

print(fm.plan(fm.load_config(sys.argv[1], sys.argv[2:])).operations)
"""


@pytest.mark.slow
@pytest.mark.parametrize('config', ['digits_dp', 'tests/oracle/stacks/fedadam_cosine.toml'])
def test_single_operations_are_counted_where_methods_compute_something(tmp_path, config):
  short = ['rounds=2']
  env = {**os.environ, 'FEDJAX_MEM_CACHE': str(tmp_path / 'plan')}
  words = [sys.executable, '-c', PLAN, config, *short]
  told = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
  operations = int(told.stdout)
  names = compiled(tmp_path, config, *short)
  assert (
    operations > 0
    and names.total() == operations + planned(plan(load_config(config, short))).total()
  )
  assert sum(names[x] for x in names if x not in NAMED) == operations


def test_what_a_resumed_run_compiles_besides(make):
  assert plan(make()).resumed == ()
  options = 'l2_clip_norm=1.0, noise_multiplier=1.0'
  noised = make(
    f'stages=[{{use="central", options={{{options}}}}}]',
    'privacy.delta=1e-3',
    'weighting.name=equal',
    'weighting.options.divisor=4',
  )
  assert [x.name for x in plan(noised).resumed] == ['drawn_again']
