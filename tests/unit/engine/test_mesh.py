"""What depends on the platform: layouts, compiler options, evaluation on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.engine import Execution, evaluator
from fedjax_mem.engine import execution as executions
from fedjax_mem.engine import mesh as meshes

SMALL, LARGE = {'w': jnp.zeros(100)}, {'w': jax.ShapeDtypeStruct((10**6,), 'float32')}
pytestmark = pytest.mark.devices(2)
needing = lambda n: functools.partial(pytest.param, marks=pytest.mark.devices(n))


def layout(capacity=30, params=SMALL, **kwargs):
  made = executions.resolve(Execution(**kwargs), capacity, params)
  return made.chunk, made.looped, made.devices, made.block


@pytest.mark.parametrize(
  'kwargs, expected',
  [
    ({'mode': 'vmap', 'devices': 1}, (30, False, 1, 30)),
    needing(4)({'mode': 'vmap', 'devices': 4}, (8, False, 4, 32)),
    needing(4)({'mode': 'loop', 'devices': 4}, (1, True, 4, 4)),
    ({'mode': 'vmap', 'devices': 2}, (15, False, 2, 30)),
    ({'mode': 'loop', 'devices': 2}, (1, True, 2, 2)),
    ({'mode': 'chunk', 'chunk': 7, 'devices': 2}, (7, False, 2, 14)),
    ({'mode': 'chunk', 'chunk': 99, 'devices': 2}, (15, False, 2, 30)),
    needing(8)({'mode': 'vmap'}, (4, False, 8, 32)),  # all the devices there are
  ],
)
def test_layouts(kwargs, expected):
  assert layout(**kwargs) == expected


def test_no_more_devices_than_clients():
  few = tiny.DEVICES - 1
  assert layout(capacity=few, mode='vmap')[2] == few


def test_auto_follows_the_table_by_platform_and_size():
  assert layout(devices=1) == (25, False, 1, 25)
  assert layout(params=LARGE, devices=1) == (1, True, 1, 1)


def test_only_options_that_the_compiler_knows_are_passed(monkeypatch):
  assert not meshes._known({'xla_no_such_option': 1})
  assert meshes.compiler_options('no such platform') == {}
  wanted = meshes.compiler_options('cpu')
  assert wanted and meshes._known(wanted)
  old = next(iter(wanted))  # a compiler that does not know this one still gets the others
  monkeypatch.setattr(meshes, '_known', lambda options: old not in options)
  assert meshes.compiler_options.__wrapped__('cpu') == {x: wanted[x] for x in wanted if x != old}


def test_a_mesh_of_so_many_devices():
  assert (
    meshes.make_mesh().size == tiny.DEVICES
    and meshes.make_mesh(tiny.DEVICES - 1).size == tiny.DEVICES - 1
  )
  with pytest.raises(ValueError, match=r'devices must be an integer >= 1 and <= \d, got 9'):
    meshes.make_mesh(9)


@pytest.mark.slow
@pytest.mark.parametrize(
  'devices, batch_size', [(1, 100), (1, 7), (tiny.SOME, 3), (tiny.DEVICES, 1)]
)
def test_evaluation_is_a_mean_over_all_examples(devices, batch_size):
  rng = np.random.default_rng(0)
  arrays = {'x': rng.normal(size=(53, 5)).astype('f4'), 'y': rng.integers(0, 3, 53).astype('i4')}
  params = tiny.initial()
  metrics = lambda p, b: {'loss': tiny.loss(p, b), 'first': b['x'][:, 0]}
  evaluate = evaluator(metrics, arrays, batch_size=batch_size, mesh=meshes.make_mesh(devices))
  told = evaluate(params)
  assert told['loss'] == pytest.approx(float(tiny.loss(params, arrays).mean()), rel=1e-5)
  assert told['first'] == pytest.approx(arrays['x'][:, 0].mean(), abs=1e-6)


def test_nothing_to_evaluate_on():
  with pytest.raises(ValueError, match='at least one example to evaluate on, got 0'):
    evaluator(lambda p, b: b, {'y': np.zeros(0)}, batch_size=1, mesh=meshes.make_mesh(1))
  with pytest.raises(ValueError, match='batch_size must be an integer >= 1, got 0'):
    evaluator(lambda p, b: b, {'y': np.zeros(3)}, batch_size=0, mesh=meshes.make_mesh(1))


@pytest.mark.devices(2)
def test_where_the_compiler_puts_in_exchanges_they_are_begun_in_one_order():
  ordered = 'xla_cpu_scheduler_type'
  assert ordered not in (meshes.options_for(meshes.make_mesh(2)) or {})
  assert ordered in meshes.options_for(meshes.make_mesh(2, 2))
