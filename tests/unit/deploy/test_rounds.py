"""Rounds at the server with real clients' sides, without the engine: they are the simulation's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import deployed
from reference.deployed import CENTRAL, LOCAL, MASK, RAGGED, SEEDED, Bare, Deployment, Wire

from fedjax_mem.core import Bound, Bounds, Layer, Stage, compose, tree
from fedjax_mem.deploy import enrolment, messages
from fedjax_mem.deploy.form import Form
from fedjax_mem.deploy.rounds import TooFew
from fedjax_mem.engine import Execution, simulate

SOME = ('selection.cohort_size=2', 'selection.dropout=0.3')
CLIP = (
  "stages=[{use='adaptive_clip', options={noise_multiplier=0.5, expected=3, bit_noise=1.0}}]",
  'privacy.delta=1e-3',
  'weighting.options.divisor=3',
)
ADAM = "server.optimizer='fedadam'", 'server.learning_rate=0.01'
# Of each kind of message one; top_k, central noise, error feedback and masks are below, and in
# test_serving.py.
WAYS = {
  'some': (*RAGGED, *SOME),
  'quantize': ("stages=[{use='quantize', options={bits=4}}]", *RAGGED),
  'eden': ("stages=[{use='eden', options={bits=2}}]",),
  'random_k, fedadam': ("stages=[{use='random_k', options={fraction=0.1}}]", *ADAM),
  'median': ("stages=[{use='median'}]", *RAGGED),
  'adaptive_clip': (*CLIP, SEEDED),
  'local': (*LOCAL, SEEDED),
}
SINGLE = ('top_k', 'quantize', 'eden', 'random_k, fedadam')  # whose messages are compared as well
INEXACT = (
  'some',
  'quantize',
  'median',
)  # weights that are not 1 lose a bit; see reference.deployed


def opened(folder, *overrides, least=None):
  """Returns (deployment, rounds of it with all its clients)."""
  deployment = Deployment(folder, deployed.experiment(folder, *overrides))
  return deployment, Bare(deployment, Wire(deployment.clients()), least)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A deployment of three clients without any stage, whose state each test puts back."""
  folder = tmp_path_factory.mktemp('plain')
  return opened(folder, "stages=[{use='top_k', options={fraction=0.1}}]")


@pytest.fixture(scope='module')
def masked(tmp_path_factory):
  """A deployment of four clients under secure aggregation, whose state each test puts back."""
  return opened(tmp_path_factory.mktemp('masked'), *MASK)


@pytest.fixture
def four(masked):
  return before(masked[1])


@pytest.fixture
def three(plain):
  """The rounds of `plain`, before its first one."""
  yield before(plain[1])
  (plain[0].server.path / 'revoked.json').unlink(missing_ok=True)


def before(bare):
  """Returns rounds as they were before the first one."""
  bare.start = getattr(bare, 'start', bare.state)
  bare.state, bare.lines[:], bare.counted[:] = bare.start, [], []
  bare.post.inbox.refused.clear()
  bare.wire.__init__(bare.wire.clients)
  deployed.unasked(bare.wire.clients.values())
  return bare


def watch(size):
  """Returns the layer that keeps each client's last message, [D], in its state."""

  def cohort(ctx, stack, rows):
    return stack, jax.vmap(lambda x: tree.ravel(x))(stack.update), {}

  change = Bounds(lambda ctx, bound: Bound(), 'as it was')
  return Layer('watch', cohort=Stage(cohort, lambda ctx: jnp.zeros(size), (change,)))


def messages_of(deployment, bare):
  """Returns client -> its message [D] in the first round of a simulation in loop."""
  ready = bare.ready
  size = tree.size(bare.plan.form._made.message.update)
  layers = compose(*ready.parts.layers, watch(size))
  sim = simulate(
    layers,
    ready.parts.params,
    ready.sim.population,
    seed=deployment.config.seed,
    execution=Execution(mode='loop', devices=1),
    shape=ready.source.shape,
    transforms=(ready.parts.data.preprocess,),
    max_rounds=1,
  )
  return np.asarray(sim.run(sim.init(ready.parts.params), 1)[0].clients['watch'])


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_five_rounds_end_with_the_parameters_of_a_simulation(way, tmp_path):
  same_as_simulated(way, *opened(tmp_path, *WAYS[way]))


@pytest.mark.slow
def test_five_rounds_of_top_k_are_the_simulations(plain, three):
  same_as_simulated('top_k', plain[0], three)


@pytest.mark.slow
def test_five_rounds_under_secure_aggregation_are_the_simulations_exactly(masked, four):
  same_as_simulated('masks', masked[0], four)


def same_as_simulated(way, deployment, bare):
  read, form = {}, bare.plan.form
  form.read = lambda body, *rest: read.setdefault(rest, Form.read(form, body, *rest))
  try:
    done = bare.run(5)
  finally:
    del form.read
  state, metrics = deployed.simulated(bare.ready, 5)
  apart = deployed.apart(state.params, bare.state.params)
  assert apart <= 1e-6 if way in INEXACT else apart == 0
  assert deployed.apart(state.params, bare.ready.parts.params) > 1e-3  # it has learned
  assert bare.lines == bare.wire.refusals == [] and done.refused == 0
  if way in SINGLE:
    wanted = messages_of(deployment, bare)
    sent = [read[deployment.config.seed, 0, i].message.update for i in range(3)]
    np.testing.assert_array_equal(np.stack([tree.ravel(x) for x in sent]), wanted)
    assert wanted.any()
  if not form.quiet:  # then metrics cross, and are the simulation's
    for name, value in metrics.items():
      np.testing.assert_allclose(done.metrics[name], value[-1], 1e-6, err_msg=name)


@pytest.mark.slow
def test_a_round_is_the_same_whoever_answers_first(three):
  three.run(2)
  params = jax.device_get(three.state.params)
  three.state, three.wire.order = three.start, ['c', 'a', 'b']
  done = three.run(2)
  assert deployed.apart(params, three.state.params) == 0
  assert deployed.apart(params, three.start.params) > 1e-3
  assert done.metrics['examples'] == three.ready.parts.data.counts.sum()


def changing(name, change):
  """Returns what makes `change` of every answer of one client."""
  return lambda who, blob, answer: change(answer) if who == name else answer


def resealed(deployment, name, **changes):
  """Returns a change of an answer's header, or of its body, signed by a client's own key."""
  from fedjax_mem.deploy.kit import Kit

  sign = Kit.open(deployment.kits[name], 'client').sign
  body = changes.pop('body', None)

  def change(answer):
    header, old = messages.parse(answer)[:2]
    new = old if body is None else body(old)
    return messages.seal(sign, dataclasses.replace(header, **changes), new)

  return change


BAD = {
  'unsigned': lambda d: lambda x: x[:-64] + bytes(64),
  'altered': lambda d: lambda x: x[:-70] + bytes([x[-70] ^ 1]) + x[-69:],
  'by another': lambda d: resealed(d, 'a'),
  'of another': lambda d: resealed(d, 'b', sender='a'),
  'round': lambda d: resealed(d, 'b', round=7),
  'turn': lambda d: resealed(d, 'b', turn='0' * 32),
  'run': lambda d: resealed(d, 'b', run='0' * 32),
  'oversized': lambda d: resealed(d, 'b', body=lambda x: x + bytes(10**5)),
  'nothing': lambda d: lambda x: b'',
  'kind': lambda d: resealed(d, 'b', kind='ready'),
}
REASON = {
  'by another': 'altered',
  'of another': 'unknown',
  'round': 'stale',
  'turn': 'stale',
  'run': 'stale',
  'nothing': 'malformed',
  'kind': 'malformed',
}


@pytest.mark.slow
@pytest.mark.parametrize('bad', BAD)
def test_what_does_not_count_is_never_decoded_and_the_round_ends_without_it(
  bad, plain, three, monkeypatch
):
  read = []
  whole = Form.read
  monkeypatch.setattr(
    Form, 'read', lambda self, body, *rest: (read.append(rest[-1]), whole(self, body, *rest))[1]
  )
  three.wire.change = changing('b', BAD[bad](plain[0]))
  done = three.run()
  reason = REASON.get(bad, bad)
  assert read == [0, 2]
  assert done.refused == 1 and three.post.inbox.refused == {reason: 1}
  (line,) = three.lines
  assert line.startswith(f'round 1: refused what b sent: {reason}: ')
  assert done.metrics['clients'] == 2 and int(done.state.round) == 1


def test_an_answer_of_an_earlier_round_does_not_count_in_the_next(three):
  kept = {}

  def late(name, blob, answer):
    return kept.setdefault(name, answer) if name == 'b' else answer

  three.wire.change = late
  assert three.run().metrics['clients'] == 3
  done = three.run()
  assert done.metrics['clients'] == 2 and three.post.inbox.refused == {'stale': 1}


GARBAGE = {
  'empty': lambda x: b'',
  'short': lambda x: x[:-1],
  'long': lambda x: x + b'0',
  'no packet': lambda x: x[:13] + bytes(len(x) - 13),
  'all ones': lambda x: b'\xff' * len(x),
  'not a weight': lambda x: weighing(x, np.nan),
  'infinite weight': lambda x: weighing(x, np.inf),
  'negative weight': lambda x: weighing(x, -1),
  'twice the weight': lambda x: weighing(x, 2),
}


def weighing(body, weight):
  """Returns the body with another weight: the float32 in the packet's header."""
  at = body.index(np.float32(1).tobytes(), 13)
  return body[:at] + np.float32(weight).tobytes() + body[at + 4 :]


@pytest.mark.parametrize('garbage', GARBAGE)
def test_a_body_that_no_client_of_the_round_sends_is_refused(garbage, plain, three):
  three.wire.change = changing('b', resealed(plain[0], 'b', body=GARBAGE[garbage]))
  done = three.run()
  assert done.metrics['clients'] == 2 and three.post.inbox.refused == {'malformed': 1}
  (line,) = three.lines
  assert line.startswith('round 1: refused what b sent: malformed: ')


def test_a_client_that_declines_is_not_counted_as_refused(three):
  three.wire.change = lambda name, blob, answer: answer
  three.wire.clients = {**three.wire.clients}
  held = three.wire.clients['b']._plan
  three.wire.clients['b']._plan = held._replace(spent=True)
  three.wire.clients['b']._memory.answered = 9
  try:
    done = three.run()
  finally:
    three.wire.clients['b']._plan = held
    three.wire.clients['b']._memory.answered = -1
  assert done.metrics['clients'] == 2 and done.refused == 0
  assert three.lines == ['round 1: b declines']
  assert [x.split(' in ')[0] for x in three.counted] == ['round 1: update: 2 of 3']


def test_with_fewer_answers_than_a_round_needs_nothing_changes(three):
  three.wire.change = changing('b', lambda x: None)
  three.rounds.least = 3
  try:
    before = three.state
    with pytest.raises(TooFew, match='clients that answered in time: 2; a round needs 3'):
      three.run()
    assert three.state is before
  finally:
    three.rounds.least = None


def test_a_revoked_client_is_not_asked_from_the_next_round_on(plain, three):
  three.run()
  enrolment.revoke(plain[0].server, 'b')
  done = three.run()
  assert [x for x in three.wire.kinds() if x[2] == 1] == [('a', 'train', 1), ('c', 'train', 1)]
  assert done.metrics['clients'] == 2


def test_bytes_are_those_on_the_wire_and_the_plan_bounds_them(three):
  done = three.run()
  assert done.down == sum(len(blob) for _, blob, _ in three.wire.log)
  assert done.up == sum(len(answer) for *_, answer in three.wire.log)
  for _, blob, answer in three.wire.log:
    assert len(messages.parse(blob).body) == three.plan.form.bytes_down
    assert len(messages.parse(answer).body) <= three.plan.form.bytes_up


def test_a_client_without_a_finite_update_is_named_and_left_out(three):
  client = three.wire.clients['b']
  body = client._body
  client._body = spoiled(body)
  try:
    done = three.run()
  finally:
    client._body = body
  assert done.metrics['clients'] == 2 and done.refused == 0
  assert done.metrics['not_finite'].tolist() == [-1, 1, -1]
  assert np.isfinite(tree.ravel(three.state.params)).all()


def spoiled(body):
  """Returns the body of a client whose update is not finite."""
  nan = lambda told: told._replace(
    params=jax.tree.map(lambda x: x * np.float32(np.nan), told.params)
  )
  return lambda told, *rest: body(nan(told), *rest)


def silent(bare):
  """Checks that what clients send depends in nothing but the message on what they hold."""
  assert bare.plan.form.quiet
  client = bare.wire.clients['b']
  held, body, count = client._arrays, client._body, client._count
  client._arrays = {**held, 'y': jnp.zeros_like(held['y'])}  # another loss
  client._count = count - 7  # fewer examples
  bare.run()
  client._arrays, client._count = held, count
  client._body = spoiled(body)
  done = bare.run()
  client._body = body
  sizes = {}
  for *_, answer in bare.wire.log:
    header, sent = messages.parse(answer)[:2]
    sizes.setdefault((header.kind, header.round), set()).add(len(sent))
  assert all(len(x) == 1 for x in sizes.values()), sizes
  assert done.metrics['clients'] == len(bare.wire.clients)
  assert np.isfinite(tree.ravel(bare.state.params)).all()
  seen = {name for name, x in done.metrics.items() if 'loss' in name or name == 'examples'}
  assert not any(np.nan_to_num(done.metrics[name]).any() for name in seen)


@pytest.mark.slow
def test_under_a_claim_a_message_tells_nothing_beside_itself(tmp_path):
  _, bare = opened(tmp_path, *CENTRAL, SEEDED)
  silent(bare)
  for *_, answer in bare.wire.log:  # neither the number of examples nor what is finite
    assert messages.parse(answer).body[:5] == b'\x01\0\0\0\0'


@pytest.mark.slow
def test_under_masks_a_message_tells_nothing_beside_itself(four):
  silent(four)


@pytest.mark.slow
def test_secure_aggregation_goes_on_without_a_client_that_leaves_and_refuses_strangers(four):
  bare = four
  bare.run()
  first = bare.state.params
  kinds = [k for n, k, r in bare.wire.kinds() if n == 'a']
  assert kinds[0] == 'train' and len(kinds) >= 4

  def leaves(name, blob, answer):
    return None if name == 'b' and messages.parse(blob).header.kind == 'MASKED' else answer

  bare.wire.change = leaves
  done = bare.run()
  assert done.metrics['clients'] == 3
  assert deployed.apart(first, bare.state.params) > 0
  held = [x._sealed for x in bare.wire.clients.values()]
  assert held[0] is held[2] is held[3] is None  # secrets are gone with the session

  def forged(name, blob, answer):
    stranger = name == 'c' and messages.parse(answer).header.kind == 'ADVERTISE'
    return answer[:-64] + bytes(64) if stranger else answer

  bare.wire.change = forged
  done = bare.run()
  assert done.metrics['clients'] == 3 and done.refused == 1
  assert any('refused what c sent: unsigned' in line for line in bare.lines)


@pytest.mark.slow
def test_a_sum_of_fewer_than_may_be_released_is_not_released(four):
  bare = four
  bare.wire.change = lambda name, blob, answer: None if name in 'bc' else answer
  before = bare.state
  with pytest.raises(TooFew, match='nothing is released'):
    bare.run()
  assert bare.state is before


@pytest.mark.slow
def test_a_session_that_is_not_sound_is_declined(masked, four):
  """Which clients, how many must stay, and that this one is among them."""
  deployment, bare = masked[0], four
  task = {}
  bare.wire.before = lambda blobs: task.update(blobs)
  bare.wire.change = lambda name, blob, answer: None
  with pytest.raises(TooFew):
    bare.run()
  header, body = messages.parse(task['a'])[:2]
  length = int.from_bytes(body[:4], 'little')
  about = json.loads(body[4 : 4 + length])
  assert about['slots'] == [0, 1, 2, 3]
  client = bare.wire.clients['a']
  deployed.unasked([client])
  turns = iter(range(10**6))

  def answer(**changes):
    new = json.dumps(about | changes).encode()
    sent = dataclasses.replace(header, turn=f'{next(turns):032x}')
    whole = len(new).to_bytes(4, 'little') + new + body[4 + length :]
    return messages.parse(client(messages.seal(deployment.server.sign, sent, whole)))

  for changes in (
    {'slots': [0]},
    {'slots': [1, 2, 3]},
    {'slots': [1, 0, 2, 3]},
    {'slots': [0, 0, 1, 2]},
    {'slots': [0, 1, 2, 9]},
    {'slots': [-1, 0, 1, 2]},
    {'slots': 'abc'},
    {'threshold': 1},
    {'threshold': 2},
    {'threshold': 5},
    {'salt': 'no hexadecimal'},
    {'salt': 3},
  ):
    refused = answer(**changes)
    assert refused.header.kind == 'declined', changes
    assert client._sealed is None and client._memory.answered == -1, changes
  assert answer().header.kind == 'ADVERTISE'
  again = answer()
  assert again.header.kind == 'declined' and b'used up' in again.body


@pytest.mark.slow
@pytest.mark.parametrize('least', [None, 2])
def test_a_draw_of_few_or_of_nobody_is_a_round_as_in_a_simulation(least, tmp_path):
  """It would be the same in every try: a run could never get beyond it."""
  poisson = "selection={name='poisson', cohort_size=1}", 'rounds=9'
  _deployment, bare = opened(tmp_path, *poisson, least=least)
  came = [int(bare.run().metrics['clients']) for _ in range(9)]
  assert 0 in came and 1 in came
  state, _ = deployed.simulated(bare.ready, 9)
  np.testing.assert_allclose(tree.ravel(bare.state.params), tree.ravel(state.params), atol=1e-6)
