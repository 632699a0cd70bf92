"""Parameters divided over devices: rules, what is refused, where a state lies, equal bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import suite
from jax.sharding import PartitionSpec
from reference import tiny

from fedjax_mem.core import Layer, Message, Prepares, Stage, Trains, groups, stack_clients
from fedjax_mem.engine import Execution, shards, simulate
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.stages import algorithm, compress, privacy, select, weigh

SHAPES = {'a': (24,), 'b': (48, 40), 'c': (7,)}
SIZE = sum(int(np.prod(x)) for x in SHAPES.values())
RULES = (('a', 0), ('b', -1))
LIKE = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in SHAPES.items()}
needing = lambda n: functools.partial(pytest.param, marks=(pytest.mark.devices(n), pytest.mark.slow))
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


def stacks():
  """Yields every method that works on messages, with what has to be around it."""
  for registry in ('COMPRESSION', 'PRIVACY', 'SECURE', 'AGGREGATION', 'ATTACKS', 'WEIGHINGS'):
    for name in suite.IN_TREE[registry]:
      case = suite.tree_case(registry, name)
      slow = name not in ('error_feedback', 'central')
      yield pytest.param(case, id=name, marks=[pytest.mark.slow] * slow)


def dressed(case):
  sized = {'dimension': SIZE} if 'dimension' in case.arguments else {}
  return suite.dress(case.make(**sized), SENDING)


@pytest.mark.parametrize('case', stacks())
def test_all_that_follows_training_is_that_of_whole_parameters_to_the_bit(case):
  """Codes, clip norms, noise, masks, sums and what clients remember."""
  layers = dressed(case)
  if any(x.fact(Prepares) is not None for x in layers) and case.name.startswith('ATTACKS'):
    pytest.skip('it changes examples that these clients do not have')
  wide = 2 if tiny.DEVICES >= 4 else 1
  _, whole, said = result(layers, execution(wide, 1))
  _, divided, told = result(layers, execution(wide, 2))
  tiny.assert_same_bits(divided, whole)
  tiny.assert_same_bits(told, said)
