import jax.numpy as jnp
import pytest

import fedjax_mem as fm
from fedjax_mem.core import Message, Stage, shapes

UPDATES = {'a': [[1.0, 2.0], [3.0, 4.0]], 'b': [1.0, 2.0]}


def broken(side, change):
  """Returns a layer one side of which returns another message."""
  apply = lambda ctx, message, state: (change(message), state, {})
  return fm.Layer('broken', **{side: Stage(apply)})


@pytest.mark.parametrize(
  ('side', 'change', 'said'),
  [
    ('client', lambda m: m._replace(weight=m.weight[None]), r'scalar: .*\(1,\) but expected \(\)'),
    ('client', lambda m: m._replace(weight=1.0), r'scalar: it holds 1.0, which is no array'),
    ('client', lambda m: m._replace(aux=3), r'it holds 3, which is no array'),
    ('cohort', lambda m: m._replace(weight=m.weight[:1]), r'2 clients .*: .*\(1,\) != \(2,\)'),
    ('cohort', lambda m: m._replace(weight=m.weight[:, None]), r'2 clients .*: .*\(2, 1\)'),
    (
      'cohort',
      lambda m: m._replace(update={**m.update, 'b': m.update['b'][0]}),
      r"leaf 'update/b'",
    ),
    (
      'server',
      lambda m: m._replace(update={**m.update, 'b': m.update['b'].astype(jnp.int32)}),
      r"receives: got, and wanted, differ in 'update/b': types: int32 != float32",
    ),
  ],
)
def test_a_side_that_returns_another_shape_is_named_with_the_leaf(side, change, said):
  with pytest.raises(fm.IncompatibleStages, match=rf'the {side} side of .broken. must .*{said}'):
    fm.apply(UPDATES, broken(side, change))


def test_a_client_side_that_changes_shapes_needs_a_server_side():
  change = lambda m: m._replace(update={**m.update, 'b': m.update['b'][None]})
  match = r"'broken' needs a server side that restores them: .*'update/b': shapes: \(1,\) != \(\)"
  with pytest.raises(fm.IncompatibleStages, match=match):
    fm.apply(UPDATES, broken('client', change))


def test_a_state_that_changes_is_named_with_the_leaf():
  grow = Stage(lambda ctx, m, s: (m, {'n': s['n'][None]}, {}), lambda ctx: {'n': 0.0})
  with pytest.raises(ValueError, match=r"client state of .grow. must keep .*'n': shapes: \(1,\)"):
    fm.apply(UPDATES, fm.Layer('grow', client=grow))
  made = Stage(lambda ctx, m, s: (m, jnp.float32(1), {}))
  with pytest.raises(ValueError, match=r'server state of .made. .*declares no state: give .*init'):
    fm.apply(UPDATES, fm.Layer('made', server=made))


def test_a_python_number_may_begin_a_state():
  count = Stage(lambda ctx, m, s: (m, s + jnp.float32(1), {'n': s}), lambda ctx: 2.0)
  assert fm.apply(UPDATES, fm.Layer('count', server=count)).metrics['count/n'] == 2


def test_an_error_inside_of_a_side_says_which():
  wrong = fm.Layer('wrong', cohort=Stage(lambda ctx, m, s: 1 / 0))
  with pytest.raises(ZeroDivisionError) as found:
    fm.apply(UPDATES, wrong)
  assert found.value.__notes__[0] == "(in the cohort side of the layer 'wrong')"


@pytest.mark.parametrize(
  ('layer', 'said'),
  [
    (fm.stages.aggregate.median, 'must be a Layer, got <function median'),
    (fm.Layer('f', client=lambda: 0), "client side of 'f' must be a Stage"),
    (fm.Layer('f', client=Stage(lambda: 0, facts=fm.Attacks())), 'must be a tuple of facts'),
  ],
)
def test_what_is_no_layer_is_refused_before_anything_runs(layer, said):
  with pytest.raises(ValueError, match=said):
    fm.apply(UPDATES, layer)


def test_trees_that_agree_are_not_unlike():
  message = Message({'a': jnp.ones(2)}, jnp.float32(1), {})
  assert shapes.unlike(message, message._replace(weight=jnp.float32(2))) == ''
  assert 'another structure' in shapes.unlike({'a': jnp.ones(2)}, {'b': jnp.ones(2)})
