"""What is refused before anything is compiled, and in which words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import stages, tiny

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Message,
  Prepares,
  Stage,
  compose,
  shape_of,
)
from fedjax_mem.engine import Execution, describe, simulate, table_bytes
from fedjax_mem.stages.select import uniform
from fedjax_mem.stages.weigh import equal


def on_server(apply, init=lambda ctx: ()):
  return Layer('broken', server=Stage(apply, init))


def on_client(apply, init=lambda ctx: ()):
  return Layer('broken', client=Stage(apply, init))


def refused(error, match, *layers, **kwargs):
  with pytest.raises(error, match=match):
    tiny.build(compose(*layers) if layers else tiny.layers(), **kwargs)


BASE = (tiny.algorithm(), tiny.rota(), equal())


def test_order_is_checked_naming_both_layers_and_the_remedy():
  refused(
    IncompatibleStages,
    "'weigh' asks a Task for 'weight': if it works on a Message, it must come after",
    equal(), tiny.algorithm(), tiny.rota(),
  )  # fmt: skip
  refused(
    IncompatibleStages,
    "'poison' works on tasks: it must come before the algorithm 'algorithm'",
    tiny.algorithm(), stages.label_flip(2, 3), tiny.rota(), equal(),
  )  # fmt: skip
  refused(
    IncompatibleStages,
    "'robust' works on messages: it must come after the algorithm 'algorithm'",
    stages.median(), *BASE,
  )  # fmt: skip


def test_a_side_that_is_not_named_is_told():
  halve = Layer('halve', Stage(lambda ctx, m, s: (m._replace(update=m.update), s, {})))
  refused(IncompatibleStages, r"'halve' asks a Draw for 'update'.*client=", *BASE, halve)
  loses = Layer('loses', select=Stage(lambda ctx, draw, s: (draw.cohort, s, {})))
  refused(IncompatibleStages, "'loses' must return a Draw, got Member", *BASE, loses)


def test_a_sampler_for_another_population():
  refused(
    ValueError,
    'must be for the 10 clients of the data, got one for 12',
    tiny.algorithm(), uniform(12, 4), equal(),
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  'apply, init',
  [
    (lambda c, m, s: (m, s * 2.0, {}), lambda ctx: jnp.int32(1)),  # another dtype
    (lambda c, m, s: (m, jnp.asarray(1.0), {}), lambda ctx: jnp.float32(1)),  # a weak type
    (lambda c, m, s: (m, s[None], {}), lambda ctx: jnp.float32(1)),  # another shape
    (lambda c, m, s: (m, {'a': s, 'b': s}, {}), lambda ctx: jnp.float32(1)),  # another structure
  ],
)
def test_a_server_state_that_drifts(apply, init):
  match = "server state of 'broken' must keep its structure, shapes and dtypes"
  with jax.numpy_dtype_promotion('standard'):
    refused(ValueError, match, *BASE, on_server(apply, init))


@pytest.mark.first(1)
@pytest.mark.parametrize('side', ('client', 'cohort'))
@pytest.mark.parametrize(
  'change',
  [
    lambda s: s.astype(jnp.float32) + 0.5,
    lambda s: jnp.stack([s, s], -1),
    lambda s: {'a': s},
    lambda s: (),
  ],
)
def test_a_client_state_that_drifts(change, side):
  apply = lambda c, m, s: (m, change(s), {})
  with jax.numpy_dtype_promotion('standard'):
    refused(
      ValueError,
      "client state of 'broken' must keep its structure, shapes and dtypes",
      *BASE,
      Layer('broken', **{side: Stage(apply, lambda ctx: jnp.int32(1))}),
    )


def test_a_server_half_must_give_back_what_its_client_half_receives():
  refused(
    IncompatibleStages,
    "server side of 'broken' must return what its client side receives",
    *BASE,
    on_server(lambda c, m, s: (m._replace(update=m.update['w']), s, {})),
  )
  forgets = on_client(lambda c, m, s: (m._replace(aux={'bit': jnp.float32(1)}), s, {}))
  refused(IncompatibleStages, "'broken' needs a server side that restores them", *BASE, forgets)


def test_an_algorithm_must_give_back_parameters():
  loses = Stage(lambda c, m, s: ({'w': m.update['w']}, s, {}))
  refused(
    IncompatibleStages,
    "server side of 'algorithm' must return",
    tiny.algorithm()._replace(server=loses), tiny.rota(), equal(),
  )  # fmt: skip


def test_a_task_layer_must_give_back_tasks_and_parameters():
  half = lambda c, t, s: (t.params, s, {})
  task = Layer('broken', client=Stage(half, facts=(Prepares(),)))
  refused(IncompatibleStages, "client side of 'broken' must return a Task, got dict", task, *BASE)
  server = Stage(lambda c, p, s: (p['w'], s, {}))
  task = Layer('broken', server=server)
  refused(IncompatibleStages, "server side of 'broken' must return", task, *BASE)


def test_a_message_layer_must_give_back_messages():
  half = on_client(lambda c, m, s: (m.update, s, {}))
  refused(
    IncompatibleStages, "client side of 'broken' must return a Message, got dict", *BASE, half
  )


def test_a_loss_that_is_not_one_value_an_example():
  from fedjax_mem.stages.algorithm import fedavg

  mean = lambda p, b, k: tiny.loss(p, b).mean()
  broken = fedavg(mean, learning_rate=0.1, batch_size=4)
  refused(
    ValueError,
    r'loss must return one value per example, shape \(4,\), got \(\)',
    broken, tiny.rota(), equal(), execution='vmap',
  )  # fmt: skip


@pytest.mark.parametrize(
  'kwargs, message',
  [
    ({'mode': 'vmaps'}, "mode must be one of .*Did you mean 'vmap'"),
    ({'mode': 'chunk'}, 'chunk must be given with mode "chunk" and only then, got None'),
    ({'chunk': 2}, 'chunk must be given with mode "chunk" and only then, got 2 with'),
    ({'mode': 'chunk', 'chunk': 0}, 'chunk must be an integer >= 1, got 0'),
    ({'devices': 0}, 'devices must be an integer >= 1, got 0'),
    ({'devices': 2.0}, 'devices must be an integer >= 1, got 2.0'),
  ],
)
def test_bad_executions(kwargs, message):
  with pytest.raises(ValueError, match=message):
    Execution(**kwargs)


def test_more_devices_than_there_are():
  there = f'devices must be an integer >= 1 and <= {tiny.DEVICES}, got 9'
  refused(ValueError, there, execution=Execution(devices=9))


@pytest.mark.parametrize('seed', (-1, 2**32, 0.5))
def test_bad_seeds(seed):
  refused(ValueError, 'seed must be an integer >= 0', seed=seed)


def test_parameters_of_another_shape():
  sim = tiny.build(tiny.layers())
  with pytest.raises(ValueError, match='params must be of the shapes'):
    sim.init({'w': jnp.zeros((5, 3))})


@pytest.mark.slow
@pytest.mark.parametrize('rounds', (0, 9, 1.5))
def test_rounds_out_of_range(rounds):
  sim = tiny.build(tiny.layers())
  state = sim.init(tiny.initial())
  with pytest.raises(ValueError, match=f'rounds must be an integer >= 1 and <= 8, got {rounds}'):
    sim.run(state, rounds)


def test_parameters_may_be_a_tree_of_any_registered_kind():
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(eq=False)  # two of them are never equal
  class Params:
    w: jax.Array
    b: jax.Array

  loss = lambda p, b, k=None: tiny.loss({'w': p.w, 'b': p.b}, b)
  from fedjax_mem.stages.algorithm import fedsgd

  algorithm = fedsgd(loss, batch_size=16, server_optimizer=optax.sgd(0.5))
  params = Params(tiny.initial()['w'], tiny.initial()['b'])
  sim = tiny.build(compose(algorithm, tiny.rota(), equal()), params=params)
  assert sim.init(params).params.w.shape == (5, 3)


def test_the_size_of_the_tables_is_known_before_they_are_made():
  sim = tiny.build(tiny.layers(stages.top_k(0.5)))
  assert table_bytes(sim.setting, tiny.initial(), sim.population) == {
    'algorithm': 0,
    'select': 0,
    'weigh': 0,
    'compress': tiny.N * 18 * 4,
  }


@pytest.mark.devices(2)
@pytest.mark.slow
def test_layouts_in_words():
  layout = tiny.build(tiny.layers(), 'chunk on devices').setting.layout
  assert describe(layout) == (
    f'{4 // tiny.SOME} clients side by side on each of {tiny.SOME} device(s) (cpu)'
  )
  assert 'one client at a time' in describe(tiny.build(tiny.layers(), 'loop').setting.layout)


def test_shapes_alone_are_enough_to_plan():
  shapes = jax.eval_shape(tiny.initial)
  sim = simulate(
    tiny.layers(), shapes, tiny.population(), shape=shape_of(tiny.population()),
    execution=tiny.MODES['vmap'],
  )  # fmt: skip
  assert sim.setting.capacity == tiny.C


def test_like_is_what_a_client_half_receives():
  seen = {}

  def apply(ctx, message, state):
    seen['client'], seen['got'] = ctx.spec, jax.tree.map(jnp.shape, message)
    return message, state, {}

  def server(ctx, message, state):
    seen['server'] = ctx.spec
    return message, state, {}

  layer = Layer('look', client=Stage(apply), server=Stage(server))
  tiny.build(tiny.layers(stages.fixed_point(8), layer))
  assert jax.tree.map(lambda x: x.shape, seen['client']) == seen['got']
  assert isinstance(seen['server'], Message) and seen['server'].weight.dtype == np.int32


@pytest.mark.parametrize('devices', [1, 2])
def test_the_gradient_is_traced_once_for_the_plan_and_the_round(devices):
  from fedjax_mem.stages.algorithm import fedavg

  traced = []

  def loss(params, batch, key=None):
    traced.append(batch['y'].shape)
    return tiny.loss(params, batch, key)

  layers = fedavg(loss, learning_rate=0.1, batch_size=4), tiny.rota(), equal()
  sim = tiny.build(layers, Execution(mode='loop', devices=devices))
  tiny.execute(sim, 1)
  assert traced == [(4,)]
