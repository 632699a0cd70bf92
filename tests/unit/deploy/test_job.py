"""The job that a server signs, and the plan that it and every client make of it."""

import json

import jax
import jax.numpy as jnp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from reference import deployed, tiny

from fedjax_mem import stages
from fedjax_mem.core import IncompatibleStages, Layer, Stage, compose, tree
from fedjax_mem.deploy import job, messages
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.job import Job
from fedjax_mem.deploy.messages import Refused
from fedjax_mem.stages import privacy
from fedjax_mem.stages.masks import integers, mask

SERVER = Ed25519PrivateKey.generate()
PUBLIC = SERVER.public_key().public_bytes_raw()
EXPECTED = Expected(
  x_shape=(tiny.FEATURES,),
  x_dtype='float32',
  y_shape=(),
  num_classes=tiny.CLASSES,
  input_shape=(tiny.FEATURES,),
  preprocess=None,
  num_clients=tiny.N,
  most=max(tiny.COUNTS),
  equal=False,
)
BATCH = tiny.DATA[0]


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  config = deployed.experiment(tmp_path_factory.mktemp('job'), "model.name='mlp'", 'noise_seed=4')
  return Job('0a' * 16, config, EXPECTED, ('ann', 'bob'))


def test_a_job_comes_back_as_it_was(given):
  assert job.read(job.write(SERVER, given), PUBLIC) == given


def test_a_change_of_any_byte_of_a_job_is_refused_in_one_line(given):
  data = job.write(SERVER, given)
  for i in range(0, len(data), 7):
    with pytest.raises(Refused, match='must be signed by the server') as raised:
      job.read(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :], PUBLIC)
    assert '\n' not in str(raised.value)


def test_a_job_of_another_key_or_kind_is_refused(given):
  with pytest.raises(Refused, match='get the kit of this deployment'):
    job.read(job.write(Ed25519PrivateKey.generate(), given), PUBLIC)
  for changes in ({'kind': 'train'}, {'sender': 'ann'}, {'to': 'ann'}):
    header, body = messages.parse(job.write(SERVER, given))[:2]
    other = messages.Header(**{**header.__dict__, **changes})
    with pytest.raises(Refused, match="must be signed by the server's key"):
      job.read(messages.seal(SERVER, other, body), PUBLIC)


def altered(given, **changes):
  header, body = messages.parse(job.write(SERVER, given))[:2]
  return messages.seal(SERVER, header, json.dumps(json.loads(body) | changes).encode())


def test_another_version_of_the_package_is_refused_naming_both(given):
  with pytest.raises(Refused, match=r'got 0\.0\.0 on the server and .* here: install the same'):
    job.read(altered(given, version='0.0.0'), PUBLIC)


@pytest.mark.parametrize(
  'changes',
  [{'config': 'no toml ['}, {'config': 'rounds = -1'}, {'expected': '{}'}, {'expected': 'null'}],
)
def test_a_configuration_that_is_none_is_refused(given, changes):
  with pytest.raises(Refused, match='the configuration must be a valid one'):
    job.read(altered(given, **changes), PUBLIC)


def test_no_job_is_read_before_its_signature_is_verified(given, monkeypatch):
  data = job.write(Ed25519PrivateKey.generate(), given)
  monkeypatch.setattr(job, 'config_from_dict', lambda *_: pytest.fail('it was read'))
  monkeypatch.setattr(json, 'loads', lambda text, read=json.loads: header(read(text)))
  with pytest.raises(Refused):
    job.read(data, PUBLIC)


def header(content):
  assert 'config' not in content
  return content


def test_the_experiment_is_run_one_client_at_a_time(given):
  made = job.looped(given.config).execution
  assert (made.mode, made.chunk, made.devices) == ('loop', None, 1)


def planned(*layers):
  params = tree.shapes(tiny.initial())
  return job.plan(compose(*layers), params, EXPECTED, BATCH, lambda batch: batch)


def around(*layers, weigh=None):
  return tiny.algorithm(), tiny.rota(), weigh or stages.weigh.equal(6.0), *layers


HIDDEN = integers(4.0, clients=tiny.C), mask(clients=tiny.C)
NOISE = privacy.tree(1.0, 0.5, restart=1)
CODED = 'has a code that cannot cross by itself'


def peeking():
  def apply(ctx, message, state):
    return (
      message._replace(weight=jnp.where(ctx.cohort.arrived.any(), message.weight, 0)),
      state,
      {},
    )

  return Layer('peeking', client=Stage(apply))


REFUSED = {
  'a utility sampler': (
    lambda: (
      stages.select.oort(tiny.N, tiny.C, tiny.loss),
      tiny.algorithm(),
      stages.weigh.equal(6.0),
    ),
    'selects clients by states that they keep to themselves',
  ),
  'correlated noise and local': (
    lambda: around(*privacy.local(1.0, 0.5), NOISE),
    'depends on that of earlier rounds',
  ),
  'correlated noise and masks': (
    lambda: around(*HIDDEN, NOISE),
    'depends on that of earlier rounds',
  ),
}
TRACED = {
  'a client side after a cohort side': (
    lambda: around(stages.aggregate.median(), peeking(), weigh=stages.weigh.equal()),
    'answer once in a round',
  ),
  'power_sgd': (lambda: around(stages.compress.power_sgd(1)), CODED),
  'low_rank': (lambda: around(stages.compress.low_rank(1)), CODED),
  'a client side that sees the cohort': (lambda: around(peeking()), "asks for 'arrived'"),
}


@pytest.mark.parametrize(
  'case', [*REFUSED, *(pytest.param(x, marks=pytest.mark.slow) for x in TRACED)]
)
def test_what_cannot_work_between_processes_is_refused_in_one_line(case):
  layers, words = (REFUSED | TRACED)[case]
  with pytest.raises(IncompatibleStages, match=words) as raised:
    planned(*layers())
  assert '\n' not in str(raised.value) and ':' in str(raised.value)


@pytest.mark.slow
def test_both_sides_plan_without_an_example_of_anyone():
  plan = planned(*around())
  assert plan.sealing is None and not plan.spent and plan.form.kind == 'dense'
  assert plan.setting.shape == EXPECTED.shape
  for x in jax.tree.leaves(job.stand_in(EXPECTED, BATCH)):
    assert isinstance(x, jax.ShapeDtypeStruct)


@pytest.mark.slow
def test_rounds_are_used_up_where_a_single_one_protects_what_clients_send():
  assert planned(*around(*privacy.local(1.0, 0.5))).spent
  assert not planned(*around(privacy.central(1.0, 0.5))).spent
  masked = planned(*around(*HIDDEN))
  assert masked.spent and masked.form.quiet
  assert {x.name for x in masked.setting.layers} >= {'mask'}
