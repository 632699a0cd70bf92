"""Privacy of a run: noise calibrated, ledgers kept and resumed, budgets that end a run in time."""

import dataclasses
import json
import shutil
import time

import jax
import numpy as np
import pytest
from reference.boundaries import BOUNDARIES, dies_at, published

from fedjax_mem import account
from fedjax_mem.account import poisson
from fedjax_mem.cli import main as cli
from fedjax_mem.config.build import build
from fedjax_mem.config.load import load_config
from fedjax_mem.config.privacy import capacity, settled
from fedjax_mem.core import Draws, IncompatibleStages
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner import ledgers as ledger_files
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.ledgers import open_ledgers
from fedjax_mem.runner.loop import resume, run
from fedjax_mem.runner.prepare import get_ready

pytestmark = pytest.mark.usefixtures('undrawn')

DELTA, N, C = 1e-3, 20, 5
TEXT = """
version = 1
name = 'private'
noise_seed = 0
rounds = 12
[data]
name = 'digits'
num_clients = 20
[model]
name = 'logistic'
[client]
batch_size = 80
learning_rate = 0.5
[selection]
name = 'poisson'
cohort_size = 5
[weighting]
name = 'equal'
options = { divisor = 5 }
[[stages]]
use = 'central'
options = { l2_clip_norm = 0.5, noise_multiplier = 2.0 }
[privacy]
delta = 1e-3
[evaluation]
every = 100
[execution]
devices = 1
max_segment_rounds = 4
checkpoint_every_seconds = 0
"""


def stage(use, **options):
  """Returns the override that makes this the one stage."""
  inner = ', '.join(f'{k} = {json.dumps(v)}' for k, v in options.items())
  return f'stages=[{{use = "{use}", options = {{{inner}}}}}]'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'private.toml'
  path.write_text(TEXT)
  return path


@pytest.fixture(scope='module')
def make(file):
  return lambda *overrides: load_config(file, overrides)


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'runs'


@pytest.fixture
def call(capsys):
  def main(*words):
    code = cli.main([str(x) for x in words])
    said = capsys.readouterr()
    return code, said.out, said.err

  return main


def books_of(config):
  """Returns (ledgers, sampling) of an experiment, before its first round."""
  parts = build(config)
  sampling = next(x.fact(Draws) for x in parts.layers if x.select)
  return open_ledgers(config, parts.layers, parts.data.counts), sampling


def manifest(folder):
  return json.loads((folder / 'manifest.json').read_text())


def bits(params):
  return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(params)]


def timeless(records):
  return [json.dumps({k: x for k, x in r.items() if k != 'seconds'}) for r in records]


class Killed(BaseException):
  """Stands for a death that nothing in the package may catch."""


def killed_before_checkpoint(config, out, round):
  """Runs and dies after the ledger of `round` is written, before its checkpoint; the folder."""
  save = Checkpoints.save

  def dies(self, state):
    if int(state.round) >= round:
      raise Killed
    return save(self, state)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    patch.setattr(Checkpoints, 'save', dies)
    run(config, out, quiet=True)
  (folder,) = out.iterdir()
  return folder


# A budget ends the run before the round that would exceed it.


def epsilons(sampling, mechanism, rounds, **how):
  return [account.epsilon(sampling, mechanism, r, DELTA, **how) for r in range(1, rounds + 1)]


@pytest.fixture(scope='module')
def ended(make, tmp_path_factory):
  """(config, result, stated guarantees, ledger rounds at each checkpoint) of a run of 6 of 12."""
  _, sampling = books_of(make())
  stated = epsilons(sampling, Gaussian(2.0), 12)
  config = make(f'privacy.target_epsilon={(stated[5].epsilon + stated[6].epsilon) / 2}')
  # The rows of a cohort depend on the budget, and what overflow adds to delta on the rows.
  stated = epsilons(books_of(config)[1], Gaussian(2.0), 12)
  seen = []
  save = Checkpoints.save

  def looks(self, state):
    ledger = json.loads((self.folder.parent / 'ledger.json').read_text())
    seen.append((int(state.round), ledger['charged']))
    return save(self, state)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.report.figures.png', lambda *args, **options: b'\x89PNG')
    patch.setattr(Checkpoints, 'save', looks)
    result = run(config, tmp_path_factory.mktemp('ended'), quiet=True)
  return config, result, stated, seen


@pytest.mark.slow
def test_a_budget_ends_the_run_before_the_round_that_would_exceed_it(ended):
  config, result, stated, _ = ended
  budget = config.privacy.target_epsilon
  assert [r['round'] for r in result.metrics] == [1, 2, 3, 4, 5, 6]
  assert stated[5].epsilon <= budget < stated[6].epsilon
  assert 'test_accuracy' in result.metrics[-1]  # the last round is evaluated, wherever it is
  said = manifest(result.folder)
  (warning,) = said['warnings']
  assert warning.startswith('ended after round 6: the next would exceed the budget of epsilon')
  assert (said['status'], said['rounds_done']) == ('finished', 6)
  assert 'after 6 rounds' in said['privacy']['statements'][0]


@pytest.mark.slow
def test_every_record_states_the_accountants_epsilon_of_that_round(ended):
  _, result, stated, _ = ended
  records = read_metrics(result.folder / 'metrics.jsonl')
  for record, claim in zip(records, stated, strict=False):
    assert record['epsilon'] == pytest.approx(claim.epsilon, rel=1e-12)
    assert record['delta'] == pytest.approx(claim.delta, rel=1e-12)


def test_the_ledger_file_says_what_ran_and_is_written_before_the_checkpoint(ended):
  config, result, stated, seen = ended
  said = ledger_files.read(result.folder)
  assert (said['charged'], said['done'], said['allowed']) == (6, 6, 6)
  assert said['budget'] == config.privacy.target_epsilon
  assert said['guarantee']['epsilon'] == pytest.approx(stated[5].epsilon, rel=1e-12)
  assert said['guarantee']['adjacency'] == 'add_or_remove_one'
  assert said['guarantee']['accountant'] == 'PLD'
  assert said['entry']['mechanism']['noise_multiplier'] == 2.0
  assert seen and all(state <= ledger for state, ledger in seen)
  assert seen[-1] == (6, 6)


@pytest.mark.slow
def test_the_command_ends_with_code_0_and_says_why(call, file, ended, out):
  budget = f'privacy.target_epsilon={ended[0].privacy.target_epsilon}'
  code, said, err = call('run', file, '--out', out, '--set', budget)
  assert (code, err) == (0, '')
  said = ' '.join(said.split())
  assert 'round 6: test accuracy' in said
  assert 'ended after round 6: the next would exceed the budget' in said
  assert (
    'ε = ' in said
    and 'add-or-remove-one, PLD' in said
    and 'ideal noise (float32 simulation)' in said
  )


@pytest.mark.first(1)
@pytest.mark.parametrize(('accountant', 'budget'), [('rdp', 1.5), ('pld', 1.1)])
def test_no_segment_reaches_beyond_the_budget(make, accountant, budget):
  config = make(f'privacy.target_epsilon={budget}', f'privacy.accountant={accountant}')
  ledgers, _ = books_of(config)
  allowed = ledgers.central.allowed
  assert 1 <= allowed < 12
  assert [ledgers.room(done, 12) for done in range(13)] == [
    max(0, allowed - done) for done in range(13)
  ]
  with pytest.raises(ValueError, match='within the budget'):
    ledgers.charge(allowed + 1, 1)


@pytest.mark.slow
def test_a_budget_below_one_round_is_refused_before_there_is_a_folder(call, file, out):
  sets = ('--set', 'privacy.target_epsilon=0.01')
  code, _, err = call('run', file, '--out', out, *sets)
  assert code == 2 and 'budget must be at least' in err and err.count('\n') == 1
  assert not out.exists()


# What is refused.


@pytest.mark.first(8)
@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (('privacy.delta=',), r'privacy.delta must be given for a run with noise \(central\)'),
    (('stages=[]', 'privacy.target_epsilon=2'), 'target_epsilon must be left out without a stage'),
    (
      ('privacy.target_epsilon=2', stage('central', l2_clip_norm=0.5, noise_multiplier=0)),
      'target_epsilon must be left out without a stage',
    ),
    (
      (stage('central', l2_clip_norm=0.5),),
      r'stages\[0\].options.noise_multiplier must be given, or privacy.target_epsilon',
    ),
    (
      (stage('central', l2_clip_norm=0.5), 'privacy.target_epsilon=2', 'privacy.delta='),
      r'stages\[0\].options.noise_multiplier must be given, or privacy.target_epsilon',
    ),
    (
      (stage('local', l2_clip_norm=0.5), 'privacy.target_epsilon=2'),
      'only central noise by client is calibrated',
    ),
    (
      (stage('central', l2_clip=0.5), 'privacy.target_epsilon=2'),
      r"stages\[0\].options must be among .*got 'l2_clip'",
    ),
    (
      (stage('central'), 'privacy.target_epsilon=2'),
      r"stages\[0\].options.l2_clip_norm must be given",
    ),
    (
      (stage('adaptive_clip', expected=1), 'privacy.target_epsilon=0.5'),
      'noise_multiplier must be below 2 bit_noise',
    ),
  ],
)  # fmt: skip
def test_a_claim_that_is_not_complete_is_refused(make, overrides, words):
  with pytest.raises(ValueError, match=words):
    books_of(make(*overrides))


SAMPLER = """
import dataclasses

from fedjax_mem.core import Draws, Looks
from fedjax_mem.stages.select import uniform


def by_loss(num_clients, cohort_size):
  layer = uniform(num_clients, cohort_size)
  law = dataclasses.replace(layer.fact(Draws), scheme='data_dependent')
  return layer._replace(select=layer.select._replace(facts=(law, Looks("others' data"))))
"""
CALIBRATED = (stage('central', l2_clip_norm=0.5), 'privacy.target_epsilon=4')


@pytest.mark.first(3)
@pytest.mark.parametrize('noise', [(), CALIBRATED], ids=['given', 'calibrated'])
@pytest.mark.parametrize(
  ('overrides', 'stages', 'words'),
  [
    (('selection.name=peeking:by_loss',), ('central', 'select'), ' data'),
    (('weighting.name=examples', 'weighting.options={}'), ('central', 'weigh'), 'no public cap'),
    (('weighting.options={}',), ('central', 'weigh'), 'give it a fixed divisor'),
    (
      ('selection.clock={median_seconds=1.0, deadline=2.0}',),
      ('central', 'deadline'),
      "looks at others' data",
    ),
    (
      ('weighting.name=capped', 'weighting.options={cap=50}'),
      ('central', 'weigh'),
      'give it a fixed divisor',
    ),
  ],
  ids=['data-dependent', 'by examples', 'no divisor', 'clock', 'capped, no divisor'],
)
def test_what_breaks_the_claim_is_refused_by_both_names_in_one_line(
  call, file, out, layers, overrides, stages, words, noise
):
  (layers / 'peeking.py').write_text(SAMPLER)
  sets = [x for s in (*overrides, *noise) for x in ('--set', s)]
  code, _, err = call('run', file, '--out', out, *sets)
  assert code == 2 and err.startswith('fedjax-mem: error: ') and err.count('\n') == 1
  assert words in err and all(repr(x) in err for x in stages)
  assert not out.exists()


def test_sizes_that_are_declared_public_may_decide_who_is_late_and_every_statement_says_so(make):
  clock = 'selection.clock={median_seconds=1.0, deadline=2.0, sizes="public"}'
  (line,) = books_of(make(clock))[0].statements()
  assert 'the number of examples of each client is public' in line
  assert 'public' not in books_of(make())[0].statements()[0]
  with pytest.raises(ValueError, match=r'selection\.clock\.sizes must be one of .*secret'):
    books_of(make(clock.replace('public', 'secret')))


def test_a_pair_without_an_event_is_refused_by_both_names(make):
  with pytest.raises(IncompatibleStages, match=r"'central' and 'select' do not fit: .*pld"):
    books_of(
      make('selection.name=uniform', 'privacy.accountant=pld', 'privacy.adjacency=replace_one')
    )


# Calibration.

POISSON, UNIFORM, ROBIN = (f'selection.name={x}' for x in ('poisson', 'uniform', 'round_robin'))
APART = ('selection.name=min_separation', 'selection.options={separation=4}')


@pytest.mark.slow
@pytest.mark.parametrize(
  'overrides',
  [
    (POISSON, stage('central', l2_clip_norm=0.5)),
    pytest.param(
      (POISSON, stage('central', l2_clip_norm=0.5), 'privacy.accountant=pld'),
      marks=pytest.mark.slow,
    ),
    (POISSON, stage('central', l2_clip_norm=0.5, per_layer=True)),
    (POISSON, stage('central', l2_clip_norm=0.5, mechanism='discrete_gaussian')),
    (POISSON, stage('laplace', l1_clip_norm=0.5)),
    (POISSON, stage('adaptive_clip', expected=20)),
    (POISSON, stage('adaptive_clip', expected=5, bit_noise=2.0)),
    (UNIFORM, stage('central', l2_clip_norm=0.5)),
    (ROBIN, stage('central', l2_clip_norm=0.5)),
    (ROBIN, stage('tree', l2_clip_norm=0.5, restart=4)),
    (*APART, stage('matrix_factorization', l2_clip_norm=0.5, rounds=12, separation=4)),
  ],
  ids=lambda x: ', '.join(x).replace('selection.name=', '')[:60],
)  # fmt: skip
def test_calibrated_noise_spends_the_budget_and_no_more(make, overrides):
  config = make(*overrides, 'privacy.target_epsilon=6')
  ledgers, _ = books_of(config)
  assert ledgers.central.allowed == config.rounds
  assert 0.99 * 6 <= ledgers.central.guarantee(config.rounds).epsilon <= 6


@pytest.mark.slow
def test_calibrated_noise_is_what_runs(make, out):
  """The same noise multiplier written into the configuration gives the same bits."""
  config = make('rounds=3', 'privacy.target_epsilon=4', stage('central', l2_clip_norm=0.5))
  result = run(config, out, quiet=True)
  last = result.metrics[-1]['epsilon']
  assert 0.99 * 4 <= last <= 4
  multiplier = ledger_files.read(result.folder)['entry']['mechanism']['noise_multiplier']
  given = make('rounds=3', stage('central', l2_clip_norm=0.5, noise_multiplier=multiplier))
  # The rows of a cohort leave room for the budget, so it has to be the same too.
  given = dataclasses.replace(given, privacy=config.privacy)
  again = run(given, out, quiet=True)
  assert bits(again.params) == bits(result.params)
  assert again.metrics[-1]['epsilon'] == last


@pytest.mark.slow
def test_settled_writes_the_noise_out_and_leaves_all_else(make):
  config = make(*CALIBRATED)
  chooser = next(x for x in build(config).layers if x.select)
  known = settled(config, chooser)
  multiplier = known.stages[0].options['noise_multiplier']
  assert isinstance(multiplier, float)
  assert known == dataclasses.replace(config, stages=known.stages)
  assert known.stages[0].options == {'l2_clip_norm': 0.5, 'noise_multiplier': multiplier}
  assert settled(known, chooser) == known


# The sampler that runs is the sampler that is accounted.


@pytest.mark.slow
@pytest.mark.parametrize('target', [(), ('privacy.target_epsilon=1.5',)])
def test_a_poisson_cohort_gets_the_rows_that_delta_needs(make, target):
  many = ('data.num_clients=400', 'selection.cohort_size=40', 'weighting.options={divisor=40}')
  config = make(*many, *target, stage('central', l2_clip_norm=0.5, noise_multiplier=4.0))
  ledgers, sampling = books_of(config)
  assert sampling.capacity < 400
  assert poisson.overflow(sampling, config.rounds) <= DELTA / 100
  bound = 1.5 if target else 10.0
  assert poisson.added_delta(sampling, config.rounds, bound) <= DELTA / 100
  fewer = dataclasses.replace(sampling, capacity=sampling.capacity - 1)
  assert poisson.added_delta(fewer, config.rounds, bound) > DELTA / 100
  stated = ledgers.central.guarantee(1)
  assert DELTA < stated.delta <= 1.01 * DELTA  # what overflow adds is in the claim


@pytest.mark.slow
def test_rows_that_are_asked_for_and_too_few_are_not_passed_over(make):
  few = make('selection.options={capacity=7}')
  ledgers, sampling = books_of(few)
  assert sampling.capacity == 7
  entry = ledgers.central.entry
  assert entry.claim.truncated and entry.claim.accountant == 'pld'
  with pytest.raises(IncompatibleStages, match='overflows its 7 rows too often'):
    books_of(make('selection.options={capacity=7}', 'privacy.accountant=rdp'))


def test_without_a_delta_the_rows_are_those_of_the_sampler(make):
  assert capacity(make('privacy.delta='), N) is None


def test_a_cohort_of_fixed_size_is_accounted_as_replace_one(make):
  ledgers, sampling = books_of(make(UNIFORM))
  stated = ledgers.central.guarantee(12)
  assert (stated.adjacency, stated.accountant) == ('replace_one', 'RDP')
  mechanism = Gaussian(2.0)
  claim = account.epsilon(sampling, mechanism, 12, DELTA, adjacency='replace_one')
  assert sampling == Draws('without_replacement', N, C, C)
  assert stated.epsilon == pytest.approx(claim.epsilon, rel=1e-12)
  poissons = account.epsilon(Draws('poisson', N, C, N), mechanism, 12, DELTA)
  assert stated.epsilon > 1.5 * poissons.epsilon
  with pytest.raises(IncompatibleStages, match='a cohort of fixed size'):
    books_of(make(UNIFORM, 'privacy.adjacency=add_or_remove_one'))


# Resuming.


@pytest.fixture(scope='module')
def whole(make, tmp_path_factory):
  config = make('rounds=6')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.report.figures.png', lambda *args, **options: b'\x89PNG')
    return config, run(config, tmp_path_factory.mktemp('whole'), quiet=True)


@pytest.mark.slow
def test_a_round_that_is_run_again_is_counted_once(whole, out):
  config, reference = whole
  folder = killed_before_checkpoint(config, out, 5)
  assert ledger_files.read(folder)['charged'] >= 5  # counted, although the checkpoint is older
  result = resume(folder, quiet=True)
  assert manifest(folder)['resumed'][0] < 5
  assert bits(result.params) == bits(reference.params)
  assert timeless(result.metrics) == timeless(reference.metrics)
  assert ledger_files.read(folder) == ledger_files.read(reference.folder)


@pytest.mark.slow
def test_a_run_that_its_budget_ended_is_completed_and_warned_of_once(ended, tmp_path):
  folder = shutil.copytree(ended[1].folder, tmp_path / 'copy')
  (folder / 'report.html').unlink()
  result = resume(folder, quiet=True)
  assert len(result.metrics) == 6 and bits(result.params) == bits(ended[1].params)
  assert manifest(folder)['warnings'] == manifest(ended[1].folder)['warnings']
  assert ledger_files.read(folder) == ledger_files.read(ended[1].folder)


def unfinished(folder, tmp_path):
  """Returns a copy of a finished run that has yet to write its report."""
  copy = shutil.copytree(folder, tmp_path / 'copy')
  (copy / 'report.html').unlink()
  return copy


@pytest.mark.slow
@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda x: x['entry'].update(layer='other'), 'with layer'),
    (lambda x: x['entry']['mechanism'].update(noise_multiplier=3.0), 'with claim'),
    (lambda x: x['entry']['sampling'].update(expected=4), 'with claim'),
    (lambda x: x['entry'].update(target_delta=1e-5), 'with target_delta'),
    (lambda x: x.update(kind='local'), 'must be a whole central ledger'),
    (lambda x: x.pop('entry'), 'must be a whole central ledger'),
    (
      lambda x: x.update(charged=2, done=2),
      'must have charged the 6 rounds of the checkpoint, got 2',
    ),
  ],
)
def test_the_ledger_of_another_plan_is_refused(whole, tmp_path, call, change, words):
  folder = unfinished(whole[1].folder, tmp_path)
  said = ledger_files.read(folder)
  change(said)
  (folder / 'ledger.json').write_text(json.dumps(said))
  code, _, err = call('resume', folder, '--quiet')
  assert code == 2 and words in err and err.count('\n') == 1 and 'ledger.json' in err


@pytest.mark.slow
def test_a_ledger_that_is_torn_or_lost_is_refused(whole, tmp_path):
  folder = unfinished(whole[1].folder, tmp_path)
  file = folder / 'ledger.json'
  text = file.read_text()
  file.write_text(text[: len(text) // 2])
  with pytest.raises(ValueError, match='must be a whole central ledger'):
    resume(folder, quiet=True)
  file.unlink()
  with pytest.raises(ValueError, match='must have charged the 6 rounds of the checkpoint, got 0'):
    resume(folder, quiet=True)
  file.write_text(text)
  assert len(resume(folder, quiet=True).metrics) == 6


def wait(process, out, found):
  """Waits until something is found in the run's folder that a process writes."""
  for _ in range(120_000):
    if process.poll() is not None:
      pytest.fail(f'the run ended too early: {process.communicate()}')
    folders = [x for x in out.glob('*') if not x.name.startswith('.')]
    if folders and found(folders[0]):
      return folders[0]
    time.sleep(0.001)
  pytest.fail('it never came to that')


@pytest.mark.slow
def test_both_ledgers_are_exact_after_kill_9(start, file, tmp_path):
  noise = 'stages=[' + ', '.join(
    f'{{use = "{use}", options = {{l2_clip_norm = 0.5, noise_multiplier = {z}}}}}'
    for use, z in (('local', 9.0), ('central', 2.0))
  ) + ']'  # fmt: skip
  settings = ('rounds=30', 'client.epochs=40', noise, 'privacy.target_epsilon=2')
  sets = [x for s in settings for x in ('--set', s)]
  whole = start('run', file, '--out', tmp_path / 'whole', '--quiet', *sets)
  assert whole.wait() == 0, whole.stderr.read()
  (reference,) = (tmp_path / 'whole').iterdir()
  out, words = tmp_path / 'killed', ('run', file, '--out', tmp_path / 'killed', '--quiet', *sets)
  last = len(read_metrics(reference / 'metrics.jsonl'))
  assert 6 <= last < 30  # the budget ends it
  for rounds in (last // 2,):
    process = start(*words)

    def lines(folder, rounds=rounds):
      file = folder / 'metrics.jsonl'
      return file.exists() and file.read_bytes().count(b'\n') >= rounds

    folder = wait(process, out, lines)
    process.kill()
    process.communicate()
    words = ('resume', folder, '--quiet')
  process = start(*words)
  _, err = process.communicate()
  assert process.returncode == 0, err
  for name in ('ledger.json', 'ledger-local.json'):
    assert (folder / name).read_bytes() == (reference / name).read_bytes()
  a, b = (read_metrics(f / 'metrics.jsonl') for f in (folder, reference))
  assert timeless(a) == timeless(b)


# What a killed run has published, its ledgers state.

BOTH = (
  'stages=[{use="local", options={l2_clip_norm=0.5, noise_multiplier=9.0}}, '
  '{use="central", options={l2_clip_norm=50.0, noise_multiplier=2.0}}]'
)
BOOKS = ('ledger.json', 'ledger-local.json')


@pytest.fixture(scope='module')
def charged(make, tmp_path_factory):
  """(configuration, result) of a run of segments of 1, 2 and 2 rounds, with rare checkpoints."""
  rare = ('execution.max_segment_rounds=2', 'execution.checkpoint_every_seconds=1000')
  config = make('rounds=5', 'noise_seed=', BOTH, *rare)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.report.figures.png', lambda *args, **options: b'\x89PNG')
    patch.setattr('fedjax_mem.core.keys.fresh_root', lambda: ROOT)
    return config, run(config, tmp_path_factory.mktemp('charged'), quiet=True)


ROOT = np.array([12345, 67890], np.uint32)


def die():
  raise Killed


@pytest.mark.slow
@pytest.mark.parametrize('boundary', BOUNDARIES)
def test_a_round_is_charged_on_the_disk_before_it_runs(charged, out, boundary):
  config, reference = charged
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    patch.setattr('fedjax_mem.core.keys.fresh_root', lambda: ROOT)  # a resumed run reads it
    dies_at(patch, boundary, 3, die)
    run(config, out, quiet=True)
  (folder,) = out.iterdir()
  rounds, epsilon = published(folder)
  assert rounds == {'rename': 3, 'ledger': 3, 'segment': 3, 'records': 5, 'checkpoint': 5}[boundary]
  books = [json.loads((folder / name).read_text()) for name in BOOKS]
  assert books[0]['guarantee']['epsilon'] >= epsilon > 0
  assert {x['charged'] for x in books} == {3 if boundary == 'rename' else 5}
  assert {x['done'] for x in books} == {1 if boundary == 'rename' else 3}
  assert manifest(folder)['privacy']['statements'] == []  # none that is out of date
  result = resume(folder, quiet=True)
  assert bits(result.params) == bits(reference.params)
  assert timeless(result.metrics) == timeless(reference.metrics)
  for name in BOOKS:
    assert (folder / name).read_bytes() == (reference.folder / name).read_bytes()
  assert manifest(folder)['privacy'] == manifest(reference.folder)['privacy']


@pytest.mark.slow
def test_records_that_no_ledger_has_charged_are_refused(charged, tmp_path):
  folder = unfinished(charged[1].folder, tmp_path)
  shutil.rmtree(folder / 'checkpoints')
  for name in BOOKS:
    (folder / name).unlink()
  with pytest.raises(ValueError, match='must have charged the 5 rounds of the records, got 0'):
    resume(folder, quiet=True)


@pytest.mark.slow
def test_local_ledgers_charge_who_is_drawn_whether_they_arrive_or_not(make, out):
  config = make(UNIFORM, 'rounds=3', LOCAL, 'selection.dropout=0.5')
  result = run(config, out, quiet=True)
  said = json.loads((result.folder / 'ledger-local.json').read_text())
  assert sum(said['participations']) == 3 * C > sum(r['clients'] for r in result.metrics)
  assert said['trail'] == [r['local/participations'] for r in result.metrics]
  assert (result.folder / 'ledger-local.json').stat().st_mode & 0o777 == 0o600


# Noise that clients add themselves.

LOCAL = stage('local', l2_clip_norm=0.5, noise_multiplier=9.0)


def participations(config, rounds):
  """Returns [R, N] how often each client was drawn, up to each round."""
  ready = get_ready(config, None, {})
  state = ready.sim.init(ready.parts.params)
  ids = np.asarray(ready.sim.cohorts(state, rounds))
  return np.cumsum([np.bincount(x[x < N], minlength=N) for x in ids], axis=0)


@pytest.fixture(scope='module')
def locally(make, tmp_path_factory):
  """A run with local noise and a budget of three participations a client."""
  claim = lambda k: account.epsilon(None, Gaussian(9.0), k, DELTA)
  budget = (claim(3).epsilon + claim(4).epsilon) / 2
  config = make(UNIFORM, LOCAL, f'privacy.target_epsilon={budget}')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fedjax_mem.report.figures.png', lambda *args, **options: b'\x89PNG')
    result = run(config, tmp_path_factory.mktemp('locally'), quiet=True)
  return config, result, claim


@pytest.mark.slow
def test_local_noise_tracks_the_client_with_the_most_participations(locally):
  config, result, claim = locally
  counts = participations(config, 12)
  for record in result.metrics:
    most = counts[record['round'] - 1].max()
    assert record['local/participations'] == most
    stated = claim(most)
    assert stated.adjacency == 'replace_one'
    assert record['epsilon'] == record['local/epsilon'] == pytest.approx(stated.epsilon, rel=1e-12)


@pytest.mark.slow
def test_local_noise_stops_in_time(locally):
  config, result, claim = locally
  counts = participations(config, 12)
  done = len(result.metrics)
  assert done < 12
  assert counts[done - 1].max() == 3  # the next round might be that client's fourth
  assert counts[done - 2].max() == 2  # and there was no reason to stop before
  assert result.metrics[-1]['epsilon'] <= config.privacy.target_epsilon < claim(4).epsilon
  said = json.loads((result.folder / 'ledger-local.json').read_text())
  held = np.zeros(N, int)
  held[said['clients']] = said['participations']
  assert held.tolist() == counts[done - 1].tolist()
  (warning,) = manifest(result.folder)['warnings']
  assert warning.startswith(f'ended after round {done}')


@pytest.mark.slow
def test_a_resumed_run_with_local_noise_ends_where_the_whole_one_does(locally, out):
  config, reference, _ = locally
  done = len(reference.metrics)
  # The ledger has the last round and its budget is spent; the checkpoint is older.
  folder = killed_before_checkpoint(config, out, done)
  assert json.loads((folder / 'ledger-local.json').read_text())['charged'] == done
  result = resume(folder, quiet=True)
  assert manifest(folder)['resumed'][0] < done
  assert len(result.metrics) == done and bits(result.params) == bits(reference.params)
  texts = [(x / 'ledger-local.json').read_text() for x in (folder, reference.folder)]
  assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_ledger_of_local_noise_must_not_be_lost(locally, tmp_path):
  folder = unfinished(locally[1].folder, tmp_path)
  (folder / 'ledger-local.json').unlink()
  with pytest.raises(ValueError, match=r'ledger-local.json must have charged the \d rounds'):
    resume(folder, quiet=True)


def test_a_sampler_that_keeps_clients_apart_does_not_end_the_run_early(make):
  """Twenty clients, five a round: a client has its second turn in round 5, and 8 rounds fit two."""
  config = make(ROBIN, 'rounds=8', LOCAL)
  ledgers, sampling = books_of(config)
  assert sampling.min_sep == 4
  turns = lambda r: np.arange(5 * (r - 1), 5 * r) % 20
  for r in range(1, 9):
    assert ledgers.room(r - 1, 8) >= 1
    ledgers.charge(r, 1, turns(r)[None])
  assert ledgers.room(8, 8) == 0
  assert ledgers.local['local'].most == 2


def test_a_budget_with_turns_ends_the_run_when_someone_would_have_one_too_many(make):
  one, two = (account.epsilon(None, Gaussian(9.0), k, DELTA).epsilon for k in (1, 2))
  ledgers, _ = books_of(make(ROBIN, 'rounds=8', LOCAL, f'privacy.target_epsilon={(one + two) / 2}'))
  assert [ledgers.room(done, 8) for done in range(5)] == [4, 3, 2, 1, 0]
  for r in range(1, 5):
    ledgers.charge(r, 1, (np.arange(5 * (r - 1), 5 * r) % 20)[None])
  assert ledgers.room(4, 8) == 0 and ledgers.local['local'].most == 1


def test_central_and_local_noise_have_a_ledger_each(make, out):
  ledgers, _ = books_of(make(BOTH))
  assert ledgers.central.entry.layer == 'central' and ledgers.local.keys() == {'local'}
  ledgers.charge(1, 1, np.array([[3, 4, N, -1]]))
  record = ledgers.metrics(1)
  assert record['epsilon'] == ledgers.central.guarantee(1).epsilon  # of the released sum
  assert record['local/participations'] == 1
  out.mkdir()
  ledgers.save(out)
  assert {x.name for x in out.iterdir()} == {'ledger.json', 'ledger-local.json'}
  assert len(ledgers.statements()) == 2 and ledgers.statements()[1].startswith('local: ε')


# DP-SGD inside the client.

STEPS, RATE, Z = 3, 0.25, 3.0
SGD = (
  'algorithm.name=dp_sgd', 'stages=[]', UNIFORM, 'client.batch_size=18',
  f'algorithm.options={{steps={STEPS}, rate={RATE}, l2_clip_norm=0.5, noise_multiplier={Z}}}',
)  # fmt: skip


@pytest.mark.slow
def test_dp_sgd_is_accounted_by_steps_of_poisson_batches(make):
  config = make(*SGD)
  parts = build(config)
  ledgers = open_ledgers(config, parts.layers, parts.data.counts)
  assert ledgers.central is None
  ledger = ledgers.local['algorithm']
  assert ledger.steps == STEPS
  largest = int(parts.data.counts.max())
  batches = ledger.entry.claim.sampling
  assert (batches.scheme, batches.population) == ('poisson', largest)
  assert batches.expected == RATE * largest
  mechanism, stated = Gaussian(Z), ledger.entry.guarantee(1)
  assert ledger.entry.claim.mechanism == mechanism
  assert (stated.trust, stated.unit) == ('local', 'example')
  for k in (1, 2, 5):
    claim = account.epsilon(batches, mechanism, k * STEPS, DELTA)
    assert claim.adjacency == 'add_or_remove_one'
    assert ledger.entry.guarantee(k).epsilon == pytest.approx(claim.epsilon, rel=1e-12)
  # Not a step a participation, and not without the batches' amplification.
  assert ledger.entry.guarantee(1).epsilon > account.epsilon(batches, mechanism, 1, DELTA).epsilon
  assert ledger.entry.guarantee(1).epsilon < account.epsilon(
    Draws('poisson', largest, largest, largest), mechanism, STEPS, DELTA
  ).epsilon  # fmt: skip


@pytest.mark.slow
def test_dp_sgd_runs_ends_with_its_budget_and_resumes(make, out, tmp_path):
  ledger = books_of(make(*SGD))[0].local['algorithm']
  two, three = (ledger.entry.guarantee(k).epsilon for k in (2, 3))
  config = make(*SGD, f'privacy.target_epsilon={(two + three) / 2}')
  result = run(config, out, quiet=True)
  counts = participations(config, 12)
  done = len(result.metrics)
  assert counts[done - 1].max() == 2 and done < 12
  assert result.metrics[-1]['epsilon'] == two
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))
  folder = killed_before_checkpoint(config, tmp_path / 'killed', 2)
  again = resume(folder, quiet=True)
  assert bits(again.params) == bits(result.params)
  assert 'ledger-algorithm.json' in {x.name for x in folder.iterdir()}
  assert 'example level, local, add-or-remove-one' in manifest(folder)['privacy']['statements'][0]


# Every mechanism in a run.

ROUNDS = 4
MECHANISMS = {
  'calibrated': (POISSON, stage('central', l2_clip_norm=0.5), 'privacy.target_epsilon=4'),
  'per layer': (
    POISSON, stage('central', l2_clip_norm=0.5, noise_multiplier=2.0, per_layer=True)
  ),
  'discrete': (
    UNIFORM, stage('central', l2_clip_norm=0.5, noise_multiplier=2.0, mechanism='discrete_gaussian')
  ),
  'laplace': (POISSON, stage('laplace', l1_clip_norm=0.5, noise_multiplier=5.0)),
  'adaptive': (POISSON, stage('adaptive_clip', noise_multiplier=0.4, expected=5)),
  'tree': (ROBIN, stage('tree', l2_clip_norm=0.5, noise_multiplier=2.0, restart=3)),
  'matrix': (
    ROBIN,
    stage('matrix_factorization', l2_clip_norm=0.5, noise_multiplier=2.0, rounds=4, separation=2),
  ),
  'blt': (
    ROBIN,
    stage(
      'matrix_factorization', l2_clip_norm=0.5, noise_multiplier=2.0, rounds=4, separation=2,
      strategy='blt', buffers=2,
    ),
  ),
}  # fmt: skip


SLOW = ('per layer', 'discrete', 'laplace', 'blt')  # together; the others show what is special


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in MECHANISMS]
)
def test_every_mechanism_runs_is_accounted_and_resumes_bit_for_bit(make, out, tmp_path, name):
  config = make(
    *MECHANISMS[name], f'rounds={ROUNDS}', 'execution.max_segment_rounds=2', 'evaluation.every=2'
  )
  result = run(config, out, quiet=True)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))
  spent = [r['epsilon'] for r in result.metrics]
  assert len(spent) == ROUNDS and spent == sorted(spent) and spent[0] > 0
  said = ledger_files.read(result.folder)
  assert said['charged'] == said['done'] == ROUNDS and said['guarantee']['epsilon'] == spent[-1]
  # As if it had been killed after its second checkpoint.
  folder = shutil.copytree(result.folder, tmp_path / 'copy')
  (folder / 'report.html').unlink()
  held = Checkpoints(folder / 'checkpoints').numbers()
  for number in held[:-1]:
    shutil.rmtree(folder / 'checkpoints' / str(number))
  again = resume(folder, quiet=True)
  assert manifest(folder)['resumed'] == [held[-1]] and held[-1] < ROUNDS
  assert bits(again.params) == bits(result.params)
  assert timeless(again.metrics) == timeless(result.metrics)
  assert ledger_files.read(folder) == said


# Privacy off.


@pytest.mark.slow
def test_a_clip_that_is_never_reached_changes_no_bit_of_the_round(make, out):
  """Promised where the clients run one by one: several local steps are never pooled.

  Where one local step is pooled, a clip asks for each client's own update, and sums differ in
  their last bits.
  """
  common = ('rounds=2', 'client.batch_size=40', 'privacy.delta=', UNIFORM)
  plain = run(make(*common, 'stages=[]'), out, quiet=True)
  clipped = run(
    make(*common, stage('central', l2_clip_norm=1e30, noise_multiplier=0)), out, quiet=True
  )
  assert bits(plain.params) == bits(clipped.params)
  for result in (plain, clipped):  # and neither claims anything
    assert not list(result.folder.glob('ledger*'))
    assert 'privacy' not in manifest(result.folder)
    assert not any('epsilon' in key for r in result.metrics for key in r)
