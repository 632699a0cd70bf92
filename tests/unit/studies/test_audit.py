"""The audit: honest noise passes, noise that is off or a third of it is caught, claims are kept."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjax_mem import account
from fedjax_mem.cli import main as cli
from fedjax_mem.config.build import build, build_layers
from fedjax_mem.config.load import load_config
from fedjax_mem.config.privacy import settled
from fedjax_mem.core import Draws, Integers, Noises
from fedjax_mem.runner.ledgers import open_ledgers
from fedjax_mem.studies import audit
from fedjax_mem.studies.games import Finding

# One whole run.

TEXT = """
version = 1
name = 'audited'
rounds = 4
[data]
name = 'digits'
num_clients = 20
[model]
name = 'logistic'
[client]
batch_size = 100
[selection]
name = 'poisson'
cohort_size = 10
[weighting]
name = 'equal'
options = { divisor = 10 }
[[stages]]
use = 'central'
options = { l2_clip_norm = 0.5 }
[privacy]
target_epsilon = 3
delta = 1e-5
[execution]
devices = 1
"""
CANARIES = 600


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'audited.toml'
  path.write_text(TEXT)
  return path


@pytest.fixture
def make(file):
  return lambda *overrides: load_config(file, overrides)


def chooser(parts):
  return next(x for x in parts.layers if x.select is not None)


def tampered(config, parts, part):
  """Returns the layers of the enlarged experiment with noise that is `part` of what is claimed."""
  known = settled(config, chooser(parts))
  (stage,) = known.stages
  noise = part * stage.options['noise_multiplier']
  known = dataclasses.replace(
    known,
    stages=(dataclasses.replace(stage, options={**stage.options, 'noise_multiplier': noise}),),
  )
  number = parts.data.num_clients
  return build_layers(audit.enlarged(known, number, CANARIES), parts.model, number + CANARIES)


@pytest.mark.slow
def test_one_run_passes_the_noise_that_is_claimed(make):
  config = make()
  found = audit.one_run(config, build(config), canaries=10_000)
  assert (found.trials, found.delta) == (650, 1e-5)  # no more than there are parameters
  assert found.claimed == pytest.approx(3, rel=0.01) and found.claimed <= 3
  assert found.verdict == 'not refuted'


@pytest.mark.slow
def test_one_run_catches_noise_that_is_off(make, capsys):
  config = make()
  parts = build(config)
  off, third = (
    audit.one_run(config, parts, canaries=CANARIES, layers=tampered(config, parts, part))
    for part in (0, 1 / 3)
  )
  assert off.claimed == pytest.approx(3, rel=0.01)  # what the experiment claims, not the layers
  assert off.verdict == 'refuted'
  assert 3.9 < off.found <= off.best  # one in 16 is never drawn
  with capsys.disabled():  # too few canaries to promise that it is caught
    print(f'\n[one run, noise / 3: at least {third.found:.2f}, {third.claimed:.2f} claimed]')


@pytest.mark.slow
def test_a_run_that_its_budget_ends_is_audited_up_to_there(make, monkeypatch):
  stage = 'stages=[{use="central", options={l2_clip_norm=0.5, noise_multiplier=2.0}}]'
  config = make(stage, 'rounds=30', 'privacy.target_epsilon=5')
  parts = build(config)
  ledger = open_ledgers(config, parts.layers, parts.data.counts).central
  assert 1 < ledger.allowed < 30
  ran = []
  simulate = audit.simulate

  def counted(*args, **kwargs):
    sim = simulate(*args, **kwargs)
    run = type(sim).run

    def wrapped(self, state, rounds, *more):
      ran.append(rounds)
      return run(self, state, rounds, *more)

    monkeypatch.setattr(type(sim), 'run', wrapped)
    return sim

  monkeypatch.setattr(audit, 'simulate', counted)
  found = audit.one_run(config, parts, canaries=50)
  assert sum(ran) == ledger.allowed
  assert found.claimed == ledger.guarantee(ledger.allowed).epsilon <= 5


# The enlarged experiment.


@pytest.mark.slow
def test_the_enlarged_experiment_keeps_rate_noise_and_the_noise_in_the_average(make):
  config = make()
  parts = build(config)
  known = settled(config, chooser(parts))
  layers = build_layers(audit.enlarged(known, 20, 60), parts.model, 80)
  sampling = next(x.fact(Draws) for x in layers if x.select)
  old = chooser(parts).fact(Draws)
  assert (sampling.population, sampling.expected) == (80, 40)
  assert sampling.expected / sampling.population == old.expected / old.population
  weigh = layers.weighs
  assert weigh.divisor == 40  # noise on the sum as before; a client counts 1 / expected cohort
  mechanisms = [
    next(n.mechanism for x in y if (n := x.fact(Noises))) for y in (layers, parts.layers)
  ]
  assert mechanisms[0] == mechanisms[1]
  epsilons = [account.epsilon(s, mechanisms[0], 4, 1e-5).epsilon for s in (sampling, old)]
  assert epsilons[0] == pytest.approx(epsilons[1], rel=1e-9)


@pytest.mark.parametrize('canaries', [1, 7, 33, 1001])
@pytest.mark.parametrize('cohort', [1, 7, 20])
def test_the_sampling_rate_is_never_above_that_of_the_experiment(make, canaries, cohort):
  larger = audit.enlarged(make(f'selection.cohort_size={cohort}'), 20, canaries)
  size, number = larger.selection.cohort_size, 20 + canaries
  assert size / number <= cohort / 20 < (size + 1) / number
  assert larger.weighting.options['divisor'] == pytest.approx(10 * number / 20)


def test_an_expected_cohort_grows_with_the_population(make):
  stage = 'stages=[{use="adaptive_clip", options={noise_multiplier=0.5, expected=10}}]'
  larger = audit.enlarged(make(stage), 20, 20)
  assert larger.stages[0].options == {'noise_multiplier': 0.5, 'expected': 20}


def test_shares_of_noise_and_room_grow_with_the_cohort(make):
  """So that the larger cohort brings the noise of the experiment's, on a grid that is as fine."""
  stages = (
    'stages=[{use="distributed", options={l2_clip_norm=0.5, noise_multiplier=1.0, shares=7, '
    'bits=16}}, {use="mask", options={bits=16, clients=10, degree=2}}]'
  )
  config = make('selection.name=round_robin', stages)
  parts = build(config)
  larger = audit.enlarged(config, 20, 43)
  shares, bits = ({x.use: x.options.get(k) for x in larger.stages} for k in ('shares', 'bits'))
  assert shares == {'distributed': 22, 'mask': None}  # 7 * 63 / 20 = 22.05
  assert bits == {'distributed': 18, 'mask': 18}
  assert larger.stages[1].options['clients'] == 32
  layers = build_layers(larger, parts.model, 63)
  (new, wide), (old, narrow) = (
    (noise.mechanism, x.bound(layer, side, {}))
    for x in (layers, parts.layers)
    for layer, side, noise in x.having(Noises)
  )
  assert new.noise_multiplier == old.noise_multiplier and new.shares == 22
  grid = next(x for x in layers if x.name == 'grid')
  assert wide.l2 >= narrow.l2 and grid.fact(Integers).clients == 31


@pytest.mark.slow
def test_one_run_with_distributed_noise_is_not_refuted(make):
  """And with noise that hardly is there, it is."""
  stage = (
    'stages=[{{use="distributed", options={{l2_clip_norm=0.5, noise_multiplier={}, shares=8, '
    'bits=18}}}}, {{use="mask", options={{bits=18, degree=2}}}}]'
  )
  config, other = (make('selection.name=round_robin', stage.format(z)) for z in (1.5, 1e-3))
  parts = build(config)
  found = audit.one_run(config, parts, canaries=100)
  assert found.verdict == 'void' and found.found < found.best < found.claimed  # so few canaries
  weak = build_layers(audit.enlarged(other, 20, 100), parts.model, 120)
  assert audit.one_run(config, parts, canaries=100, layers=weak).found > found.found


def test_separation_survives_the_enlargement(make):
  overrides = ('selection.name=min_separation', 'selection.options={separation=2}', 'stages=[]')
  larger = audit.enlarged(make(*overrides), 20, 33)  # 26.5 clients a cohort, rounded down
  parts = build(make('stages=[]'))
  assert chooser(parts._replace(layers=build_layers(larger, parts.model, 53)))


# The command.


@pytest.fixture
def call(capsys):
  def main(*words):
    code = cli.main([str(x) for x in words])
    said = capsys.readouterr()
    return code, said.out, said.err

  return main


@pytest.mark.slow
def test_the_command_shows_all_attacks_and_their_claims(call, file):
  code, said, err = call('audit', file, '--canaries', 600, '--trials', 10_000)
  assert (code, err) == (0, '')
  lines = said.splitlines()
  assert 'epsilon at least' in lines[0] and 'epsilon claimed' in lines[0]
  assert 'provable at best' in lines[0]
  assert [x.split()[0] for x in lines[1:4]] == ['release', 'draw', 'one_run']
  assert all('not refuted' in x for x in lines[1:4])


UNDERSTATED = """
from fedjax_mem.stages.privacy import central


def layer(l2_clip_norm, noise_multiplier):
  honest = central(l2_clip_norm, noise_multiplier)
  less = central(l2_clip_norm, noise_multiplier / 4)
  return less._replace(server=less.server._replace(facts=honest.server.facts))
"""


@pytest.mark.slow
def test_a_claim_that_is_refuted_is_exit_code_1(call, file, layers):
  (layers / 'understated.py').write_text(UNDERSTATED)
  stage = 'stages=[{use="understated:layer", options={l2_clip_norm=0.5, noise_multiplier=1.5}}]'
  words = ('--set', stage, '--set', 'privacy.target_epsilon=', '--set', 'rounds=1')
  code, said, err = call('audit', file, '--canaries', 20, '--trials', 10_000, *words)
  assert code == 1
  assert ' refuted' in said.splitlines()[1]
  assert err.startswith('fedjax-mem: failed: ') and 'the claim is refuted' in err
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  ('sets', 'words'),
  [
    (('stages=[]', 'privacy.target_epsilon='), 'central noise by client, got none'),
    (
      (
        'stages=[{use="local", options={l2_clip_norm=0.5, noise_multiplier=9.0}}]',
        'privacy.target_epsilon=',
      ),
      'central noise by client, got none',
    ),
    (('privacy.delta=',), 'privacy.delta'),
  ],
)
def test_what_cannot_be_audited_is_bad_input(call, file, sets, words):
  code, _, err = call('audit', file, *(x for s in sets for x in ('--set', s)))
  assert code == 2 and words in err and err.count('\n') == 1


def test_a_finding_as_a_row_says_what_was_and_what_could_have_been_proved():
  row = audit.row(Finding('release', 2.0, 1.23456, 7.5678, 1e-5, 100))
  assert (row['epsilon at least'], row['provable at best']) == (1.235, 7.568)
  assert (row['epsilon claimed'], row['verdict']) == (2.0, 'not refuted')


def test_each_canary_has_coordinates_of_its_own_and_scores_by_them():
  like = {'a': np.zeros((3, 5)), 'b': np.zeros(()), 'c': np.zeros(4)}
  owners = audit._owners(like, 7)
  together = np.concatenate([x.ravel() for x in jax.tree.leaves(owners)])
  assert together.tolist() == [i % 7 for i in range(20)]
  moved = jax.tree.map(lambda x: np.ones(x.shape), like)
  assert audit._scores(moved, owners, 7).tolist() == np.bincount(together).tolist()
