"""A job of the server, ended anywhere: the next one goes on as if nothing had happened."""

import json
import shutil

import jax
import numpy as np
import pytest
from reference import deployed
from reference.deployed import CENTRAL, LOCAL, MASK, Deployment, Wire

from fedjax_mem.deploy import messages, serving
from fedjax_mem.deploy.serving import Failed
from fedjax_mem.runner import secret

pytestmark = pytest.mark.slow
ROUNDS = 'rounds=3'


class Killed(BaseException):
  """Stands for a process that ends here."""


@pytest.fixture(autouse=True)
def _short(monkeypatch):
  monkeypatch.setattr(serving, '_LOCK', 0.5)


def begun(folder, *overrides):
  """Returns (deployment, its clients, parameters after all rounds without an interruption)."""
  deployment = Deployment(folder, deployed.experiment(folder, ROUNDS, *overrides))
  clients = deployment.clients()
  whole = deployment.copy(folder / 'whole')
  assert whole.serve(Wire(clients)) == 'finished'
  return deployment, clients, jax.device_get(whole.ended[0].params)


@pytest.fixture(scope='module')
def central(tmp_path_factory):
  return begun(tmp_path_factory.mktemp('central'), *CENTRAL)


@pytest.fixture(scope='module')
def local(tmp_path_factory):
  folder = tmp_path_factory.mktemp('local')
  deployment = Deployment(folder, deployed.experiment(folder, ROUNDS, *LOCAL))
  return deployment, deployment.clients()


def charged(deployment):
  """Returns the rounds that the ledgers on the disk count."""
  files = list(deployment.folder.path.glob('ledger*.json'))
  assert files
  return min(json.loads(x.read_text())['charged'] for x in files)


def kill_at(point, wire, patch, number=2):
  """Ends the job at a point of a round, by default its second."""

  def after(owner, name, before=False):
    whole, calls = getattr(owner, name), []

    def one(*args, **options):
      calls.append(1)
      if before and len(calls) == number:
        raise Killed
      result = whole(*args, **options)
      if len(calls) == number:
        raise Killed
      return result

    patch.setattr(owner, name, one)

  if point == 'collecting':

    def some(name, blob, answer):
      if name == 'b' and messages.parse(blob).header.round == 1:
        raise Killed
      return answer

    wire.change = some
  else:
    owner, name, *before = PLACES[point]
    after(owner, name, *before)


PLACES = {
  'charged': (serving._Server, '_begin'),
  'stepped': (serving.Rounds, 'run'),
  'before the checkpoint': (serving.Checkpoints, 'save', True),
  'after the checkpoint': (serving.Checkpoints, 'save'),
  'after the record': (serving._Server, '_write'),
}
KEPT = ('after the checkpoint', 'after the record')


def guarded(deployment, wire):
  """Checks before each message to a client that the ledger counts its round, on the disk."""

  def check(blobs):
    rounds = {messages.parse(x).header.round for x in blobs.values()}
    assert max(rounds) < 0 or charged(deployment) >= max(rounds) + 1

  wire.before = check
  return wire


@pytest.mark.parametrize('point', ['collecting', *PLACES])
def test_a_server_that_ends_anywhere_goes_on_as_if_it_had_not(
  point, central, tmp_path, monkeypatch
):
  base, clients, params = central
  deployment = base.copy(tmp_path)
  wire = guarded(deployment, Wire(clients))
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at(point, wire, patch)
    deployment.serve(wire)
  assert charged(deployment) == 2
  assert [x['round'] for x in deployment.records()] == [1, 2][: 1 + (point == KEPT[1])]
  again = guarded(deployment, Wire(clients))
  assert deployment.serve(again) == 'finished'
  assert [x['round'] for x in deployment.records()] == [1, 2, 3]
  assert charged(deployment) == 3
  assert deployed.apart(deployment.ended[0].params, params) == 0
  asked = {x[2] for x in again.kinds() if x[1] == 'train'}
  assert asked == ({2} if point in KEPT else {1, 2})


def test_the_secret_root_is_that_of_the_run_in_a_new_process_too(central, tmp_path, monkeypatch):
  base, clients, params = central
  deployment = base.copy(tmp_path)
  wire = Wire(clients)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at('stepped', wire, patch)
    deployment.serve(wire)
  assert deployment.serve(Wire(clients), anew=True) == 'finished'
  assert deployed.apart(deployment.ended[0].params, params) == 0
  root = bytes.fromhex((deployment.folder.path / 'noise.key').read_text().split()[0])
  for sent in (root, np.frombuffer(root, '>u4').astype('<u4').tobytes()):
    for _, blob, answer in wire.log:
      assert sent not in blob and sent not in answer


def test_a_run_is_the_simulation_of_its_secret_root(central):
  base, _, params = central
  root = secret.read(base.folder.path, base.manifest()['run_id'])
  state, _ = deployed.simulated(base.ready._replace(sim=base.ready.sim.with_root(root)), 3)
  assert deployed.apart(state.params, params) == 0


def test_records_are_those_of_a_run(central, tmp_path):
  base, clients, _ = central
  deployment, wire = base.copy(tmp_path), Wire(clients)
  wire.change = lambda n, blob, x: (
    x[:-64] + bytes(64) if n == 'b' and messages.parse(blob).header.round == 1 else x
  )
  deployment.serve(wire)
  first, second, _ = deployment.records()
  assert first['refused'] == 0 and second['refused'] == 1
  assert {'epsilon', 'bytes_up', 'bytes_down', 'test_accuracy'} <= set(first)
  assert 'examples' not in first and 'train_loss' not in first
  assert not {'clients', 'refused', 'bytes_up'} & set(first['covered'])
  rounds = [(x, y) for x, y in zip(wire.log, wire.kinds(), strict=True) if y[2] == 0]
  assert first['bytes_up'] == sum(len(x[2]) for x, _ in rounds)
  assert [x for x in deployment.said() if 'refused what b sent: unsigned' in x]
  outcome = json.loads((base.kits['a'] / 'work' / 'outcome.json').read_text())
  assert outcome['status'] == 'finished'
  assert outcome['line'].startswith('the run has ended after round 3')


def test_a_published_round_is_not_run_again_under_a_claim(central, tmp_path, monkeypatch):
  base, clients, _ = central
  deployment, wire = base.copy(tmp_path), Wire(clients)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at('after the record', wire, patch)
    deployment.serve(wire)
  shutil.rmtree(deployment.folder.path / 'checkpoints' / '2')
  asked = Wire(clients)
  with pytest.raises(
    Failed, match='must be that of round 2, which is published, got that of round 1'
  ):
    deployment.serve(asked)
  assert asked.log == [] and len(deployment.records()) == 2


def test_too_few_clients_are_tried_three_times_more_and_then_it_ends(central, tmp_path):
  base, clients, params = central
  deployment = base.copy(tmp_path)
  wire = guarded(deployment, Wire(clients))
  wire.change = lambda name, blob, answer: (
    None if messages.parse(blob).header.round == 1 else answer
  )
  with pytest.raises(Failed, match='clients that answered in time: 0; a round needs 1, 4 times'):
    deployment.serve(wire)
  assert [x for x in wire.kinds() if x[0] == 'a' and x[2] == 1] == [('a', 'train', 1)] * 4
  assert (deployment.folder.path / 'checkpoints' / '1').exists()
  assert len(deployment.records()) == 1 and charged(deployment) == 2
  assert deployment.serve(Wire(clients)) == 'finished'
  assert deployed.apart(deployment.ended[0].params, params) == 0


def test_a_job_ends_for_another_between_two_rounds(central, tmp_path):
  base, clients, params = central
  deployment, wire = base.copy(tmp_path), Wire(clients)

  def rejoin(blobs):
    if {messages.parse(x).header.round for x in blobs.values()} == {0}:
      (tmp_path / 'rejoin').touch()

  wire.before = rejoin
  assert deployment.serve(wire) == 'again'
  assert json.loads((tmp_path / 'joined.json').read_text()) == ['a', 'b', 'c']
  assert len(deployment.records()) == 1
  wire = Wire(clients)
  assert deployment.serve(wire) == 'finished'
  assert deployed.apart(deployment.ended[0].params, params) == 0


def test_a_run_ends_before_the_round_that_its_budget_does_not_cover(tmp_path):
  over = (*CENTRAL, 'privacy.target_epsilon=40.0')
  deployment = Deployment(tmp_path, deployed.experiment(tmp_path, *over))
  wire = guarded(deployment, Wire(deployment.clients()))
  assert deployment.serve(wire) == 'finished'
  records = deployment.records()
  assert 0 < len(records) < 5 and records[-1]['epsilon'] <= 40.0
  assert charged(deployment) == len(records)
  assert max(x[2] for x in wire.kinds()) == len(records) - 1


@pytest.mark.parametrize('point', ['charged', 'collecting', 'before the checkpoint'])
def test_a_round_that_was_begun_is_used_up_under_local_noise(point, local, tmp_path, monkeypatch):
  base, clients = local
  deployment = base.copy(tmp_path)
  deployed.unasked(clients.values())
  wire = guarded(deployment, Wire(clients))
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at(point, wire, patch)
    deployment.serve(wire)
  before = wire.kinds()
  after = guarded(deployment, Wire(clients))
  assert deployment.serve(after) == 'finished'
  records = deployment.records()
  assert [(x['round'], x.get('lost', False)) for x in records] == [
    (1, False),
    (2, True),
    (3, False),
  ]
  asked = [x for x in before + after.kinds() if x[1] == 'train']
  assert len(asked) == len(set(asked))
  assert charged(deployment) == 3


def test_the_record_of_a_lost_round_is_not_lost(local, tmp_path, monkeypatch):
  base, clients = local
  deployment = base.copy(tmp_path)
  deployed.unasked(clients.values())
  wire = Wire(clients)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at('charged', wire, patch)
    deployment.serve(wire)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    whole = serving.Checkpoints.save
    patch.setattr(serving.Checkpoints, 'save', lambda *x: (whole(*x), throw())[0])
    deployment.serve(Wire(clients))
  assert deployment.serve(Wire(clients)) == 'finished'
  assert [x['round'] for x in deployment.records()] == [1, 2, 3]


def throw():
  raise Killed


def test_under_masks_no_round_number_is_asked_twice(tmp_path):
  deployment = Deployment(tmp_path, deployed.experiment(tmp_path, ROUNDS, *MASK))
  clients = deployment.clients()
  wire = Wire(clients)
  wire.change = lambda name, blob, answer: (
    None if messages.parse(blob).header.round == 0 and name in 'ab' else answer
  )
  assert deployment.serve(wire) == 'finished'
  records = deployment.records()
  assert [(x['round'], x.get('lost', False)) for x in records] == [
    (1, True),
    (2, False),
    (3, False),
  ]
  trained = [x for x in wire.kinds() if x[1] == 'train']
  assert len(trained) == len(set(trained)) == 12
  sums = {x[2] for x in wire.kinds() if x[1] == 'MASKED'}
  assert sums == {1, 2}


FEEDBACK = "stages=[{use='error_feedback', options={codec={use='top_k', fraction=0.05}}}]"


def test_a_clients_states_outlive_its_process_and_go_back_with_the_server(tmp_path, monkeypatch):
  over = 'rounds=4', FEEDBACK, 'selection.cohort_size=2'
  deployment = Deployment(tmp_path, deployed.experiment(tmp_path, *over))
  whole = deployment.copy(tmp_path / 'whole')
  whole.serve(Wire(whole.clients()))
  deployment.forget()
  # The server is killed before the checkpoint of round 3, and clients are other processes then.
  wire = Wire(deployment.clients())
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at('before the checkpoint', wire, patch, 3)
    deployment.serve(wire)
  assert deployment.serve(Wire(deployment.clients()), anew=True) == 'finished'
  state, _ = deployed.simulated(deployment.ready, 4)
  assert deployed.apart(state.params, whole.ended[0].params) == 0
  params = [x.ended[0].params for x in (whole, deployment)]
  assert deployed.apart(*params) == 0
  # Without their states they would have sent something else.
  shutil.rmtree(deployment.folder.path / 'checkpoints' / '4')
  (deployment.folder.path / 'metrics.jsonl').write_text('')
  deployment.forget()
  lost = Wire(deployment.clients())
  assert deployment.serve(lost) == 'finished'
  assert deployed.apart(params[0], deployment.ended[1].params) > 0
