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
      r"'update/b': types: int32 != float32",
    ),
  ],
)
def test_a_side_that_returns_another_shape_is_named_with_the_leaf(side, change, said):
  with pytest.raises(fm.IncompatibleStages, match=rf'the {side} side of .broken. must .*{said}'):
    fm.apply(UPDATES, broken(side, change))


def test_a_state_that_changes_is_named_with_the_leaf():
  grow = Stage(lambda ctx, m, s: (m, {'n': s['n'][None]}, {}), lambda ctx: {'n': jnp.zeros(())})
  with pytest.raises(ValueError, match=r"client state of .grow. must keep .*'n': shapes: \(1,\)"):
    fm.apply(UPDATES, fm.Layer('grow', client=grow))


def test_trees_that_agree_are_not_unlike():
  message = Message({'a': jnp.ones(2)}, jnp.float32(1), {})
  assert shapes.unlike(message, message._replace(weight=jnp.float32(2))) == ''
  assert 'structs' in shapes.unlike({'a': jnp.ones(2)}, {'b': jnp.ones(2)})
