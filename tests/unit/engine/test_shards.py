"""Parameters divided over devices: rules, what is refused, where a state lies, equal bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import suite
from jax.sharding import PartitionSpec as P
from reference import tiny

from fedjax_mem.core import Layer, Message, Prepares, Stage, Trains, groups, stack_clients
from fedjax_mem.engine import Execution, evaluator, per_example, shards, simulate
from fedjax_mem.stages import compress
from fedjax_mem.stages.algorithm import _base as training

SHAPES = {'a': (24,), 'b': (48, 40), 'c': (7,)}
SIZE = sum(int(np.prod(x)) for x in SHAPES.values())
RULES = (('a', 0), ('b', -1))
LIKE = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in SHAPES.items()}
pytestmark = pytest.mark.devices(2)


def execution(groups, model, **more):
  rules = RULES if model > 1 else ()
  more = {'mode': 'loop', 'pool': False, **more}
  return Execution(devices=groups * model, model_devices=model, rules=rules, **more)


def population(n=tiny.N):
  rng = np.random.default_rng(5)
  return stack_clients(
    [{k: rng.normal(size=(1, *x)).astype('f4') ** 3 for k, x in SHAPES.items()} for _ in range(n)]
  )


def sending(ctx, task, state):
  """Sends the difference to the client's one example, divided as the parameters are."""
  example = jax.tree.map(lambda x: x[0], task.data.take(jnp.zeros(1, jnp.int32)))
  update = jax.tree.map(jnp.subtract, task.params, example)
  mesh = jax.sharding.get_abstract_mesh()
  if groups.MODEL in mesh.axis_names:
    specs = shards.of_parameters(RULES, LIKE, mesh.shape[groups.MODEL])
    update = shards.kept(update, specs, mesh)
  return Message(update, task.data.count.astype(jnp.float32), {}), state, {}


def server(ctx, message, state):
  return jax.tree.map(jnp.subtract, ctx.params, message.update), state, {}


SENDING = Layer('algorithm', client=Stage(sending, facts=(Trains(),)), server=Stage(server))


def initial():
  rng = np.random.default_rng(1)
  return {k: jnp.asarray(rng.normal(size=x), jnp.float32) for k, x in SHAPES.items()}


def result(layers, execution, rounds=3):
  """Returns (simulation, state, metrics) after some rounds."""
  sim = simulate(layers, initial(), population(), seed=3, noise_seed=4, execution=execution)
  state, first = sim.run(sim.init(initial()), 1)
  state, rest = sim.run(state, rounds - 1)
  assert sim.segment._cache_size() == 1
  return sim, state, (first, rest)


def dressed(case):
  sized = {'dimension': SIZE} if 'dimension' in case.arguments else {}
  return suite.dress(case.make(**sized), SENDING)


def stacks():
  """Yields every method that works on messages, with what has to be around it."""
  for registry in ('COMPRESSION', 'PRIVACY', 'SECURE', 'AGGREGATION', 'ATTACKS', 'WEIGHINGS'):
    for name in suite.IN_TREE[registry]:
      case = suite.tree_case(registry, name)
      if registry == 'ATTACKS' and any(x.fact(Prepares) is not None for x in dressed(case)):
        continue  # it changes examples, which these clients do not have
      slow = name not in ('error_feedback', 'central')
      yield pytest.param(case, id=name, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize('case', list(stacks()))
def test_all_that_follows_training_is_that_of_whole_parameters_to_the_bit(case):
  """Codes, clip norms, noise, masks, sums and what clients remember."""
  layers = dressed(case)
  wide = 2 if tiny.DEVICES >= 4 else 1
  _, whole, said = result(layers, execution(wide, 1))
  _, divided, told = result(layers, execution(wide, 2))
  if jax.__version_info__ < (0, 12):
    tiny.assert_same_bits(divided, whole)
  # Newer compilers put the product of a scale and noise into the sum, or do not; another draw or
  # code would be further off. What is only reported may be computed with something else as well.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)
  jax.tree.map(close, (divided, told), (whole, said))


def specs(rules, params=LIKE, devices=2):
  return shards.of_parameters(shards.checked(rules), params, devices)


def test_the_first_rule_that_is_found_in_a_path_counts():
  params = {'block_0': {'out': {'kernel': LIKE['b'], 'bias': LIKE['a']}}, 'out': LIKE['a']}
  rules = [['block_\\d+/.*kernel$', 1], ['bias', []], ['out', [groups.MODEL]]]
  made = specs(rules, params)
  out = made['block_0']['out']
  assert out == {'kernel': P(None, groups.MODEL), 'bias': P()}
  assert made['out'] == P(groups.MODEL)
  assert specs([['b$', ['', groups.MODEL]]])['b'] == P(None, groups.MODEL)
  assert specs([['^a$', -1]]) == {'a': P(groups.MODEL), 'b': P(), 'c': P()}


@pytest.mark.parametrize(
  'rules, words',
  [
    ((), r'rules must say how parameters are divided over model_devices = 2, got none'),
    (
      [['nothing', 0]],
      r"rules must each be found in the path of a parameter, got \('noth",
    ),
    ([['c', 0]], r"a multiple of model_devices = 2, got dimension 0 of 'c', 7 of \(7,\)"),
    ([['a', 1]], r"must name a dimension that the parameter has, got \('a', 1\) for 'a' \(24,\)"),
    ([['a', ['', 'model']]], r"rules must fit their parameters, got .* for 'a' \(24,\)"),
    ([['a', ['', '']]], r"rules must fit their parameters, got .* for 'a' \(24,\)"),
    ([['(', 0]], r"rules\[0\] must have a regular expression, got '\('"),
    ([['a', 'model']], r"rules\[0\] must name a dimension, or list 'model' once"),
    ([['a', ['model', 'model']]], r"rules\[0\] must name a dimension, or list 'model' once"),
    ([['a', ['other']]], r"rules\[0\] must name a dimension, or list 'model' once"),
    ([['a', True]], r'rules\[0\] must name a dimension'),
    ([['a']], r"rules\[0\] must be \['regular expression', dimension\], got \['a'\]"),
    ('a', r"rules must be a list of \[path, dimension\], got 'a'"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rules, words):
  with pytest.raises(ValueError, match=words):
    specs(rules)


@pytest.mark.parametrize(
  'given, words',
  [
    ({'model_devices': 2}, 'rules must say how parameters are divided'),
    ({'model_devices': 2, 'rules': [('z', 0)]}, 'must each be found in the path of a parameter'),
    (
      {'model_devices': 2, 'rules': RULES, 'devices': 1},
      r'model_devices must be a divisor of the 1',
    ),
    (
      {'model_devices': 99, 'rules': RULES},
      r'model_devices must be an integer >= 1 and <= \d, got',
    ),
    ({'model_devices': 0}, 'model_devices must be an integer >= 1, got 0'),
  ],
)
def test_a_simulation_refuses_them_before_anything_is_traced(given, words):
  def untraced(*_):
    raise AssertionError('traced')

  layer = SENDING._replace(client=Stage(untraced, facts=(Trains(),)))
  layers = suite.dress(compress.top_k(k=3), layer)
  with pytest.raises(ValueError, match=words):
    simulate(layers, initial(), population(), execution=Execution(**given))


def part(x):
  """Returns the share of an array that each device has."""
  return {shard.data.size / x.size for shard in x.addressable_shards}


@pytest.mark.standard_promotion
def test_what_is_like_a_parameter_in_a_state_is_divided_like_it():
  feedback = compress.error_feedback(compress.top_k(k=9))
  trained = SENDING._replace(server=training.server_step(optax.adam(0.1)))
  layers = suite.dress(feedback, trained)
  sim = simulate(layers, initial(), population(), execution=execution(1, 2))
  for state in (sim.init(initial()), sim.run(sim.init(initial()), 1)[0]):
    moments = state.servers['algorithm'][0]
    residual = state.clients[feedback.name][0]
    for like in (state.params, moments.mu, moments.nu, residual):
      assert [part(like[x]) for x in 'abc'] == [{0.5}, {0.5}, {1.0}]
    assert part(moments.count) == {1.0}
  assert [x.sharding for x in jax.tree.leaves(state)] == jax.tree.leaves(sim.shardings)


FEATURES, HIDDEN = 8, 12
UNEQUAL = (3, 30, 1, 7, 2, 19, 3, 6, 9, 4)


def two_layers(params, batch, key=None):
  """Returns the loss [B] of a model of which each device of a group has a part of both layers."""
  # Turned round, so that devices of a group exchange what they have.
  inner = jnp.roll(jnp.tanh(batch['x'] @ params['w']), 1, axis=-1)
  last = {'w': params['v'], 'b': jnp.zeros(tiny.CLASSES)}
  return tiny.loss(last, {'x': inner, 'y': batch['y']})


def trained(name, **how):
  """Returns (simulation, state) of an algorithm on one device, and on 2 x 2."""
  rng = np.random.default_rng(2)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
  params = {'w': draw(FEATURES, HIDDEN), 'v': draw(HIDDEN, tiny.CLASSES)}
  layers = suite.dress(suite.tree_case('ALGORITHMS', name).make(loss=two_layers))
  data = tiny.population(tiny.client_data(UNEQUAL, features=FEATURES))
  for devices, shared, rules in ((1, 1, ()), (4, 2, [('w', 1), ('v', 0)])):
    more = Execution(devices=devices, model_devices=shared, rules=rules, **how)
    sim = simulate(layers, params, data, seed=3, noise_seed=4, execution=more)
    yield sim, sim.run(sim.init(params), 3)[0]


@pytest.mark.slow
@pytest.mark.devices(4)
@pytest.mark.parametrize('mode', ['loop', 'vmap'])
@pytest.mark.parametrize('name', ['fedprox', 'dp_sgd', 'scaffold', 'fedavg'])
def test_clients_of_any_size_train_in_step(name, mode):
  """Groups whose clients differ in their passes would wait for each other for ever."""
  (_, one), (_, many) = trained(name, mode=mode, pool=False)
  tiny.assert_close(many.params, one.params)


@pytest.mark.slow
@pytest.mark.devices(4)
@pytest.mark.parametrize('how', [{'pool': True}, {'pool': False, 'data': 'divided', 'slack': 1}])
def test_a_pooled_round_and_divided_examples(how):
  (_, one), (sim, many) = trained('fedsgd', mode='loop', **how)
  assert (sim.setting.pool is not None) == how['pool']
  assert (sim.setting.apart is not None) == ('data' in how)
  tiny.assert_close(many.params, one.params)


@pytest.mark.slow
@pytest.mark.devices(4)
def test_divided_parameters_are_scored_like_whole_ones():
  arrays = tiny.client_data((21,), features=FEATURES)[0]
  scores = []
  for sim, state in trained('fedsgd', mode='loop'):
    measure = lambda params, batch: {'loss': two_layers(params, batch)}
    mesh = sim.setting.layout.mesh
    scores.append(evaluator(measure, arrays, batch_size=4, mesh=mesh)(state.params)['loss'])
    rows = np.arange(21)
    each = per_example(measure, arrays, rows, batch_size=4, mesh=mesh)(state.params)['loss']
    assert each.mean() == pytest.approx(scores[-1], rel=1e-5)
  assert scores[1] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tree', 'matrix_factorization'])
def test_noise_that_is_drawn_again_has_the_same_bits(name):
  sim, state, _ = result(dressed(suite.tree_case('PRIVACY', name)), execution(1, 2))
  bare = jax.device_get(sim.without_noise(state))
  again = sim.with_noise(jax.device_put(bare, sim.without_noise(sim.shardings)))
  tiny.assert_same_bits(again, state)
  assert [x.sharding for x in jax.tree.leaves(again)] == jax.tree.leaves(sim.shardings)
