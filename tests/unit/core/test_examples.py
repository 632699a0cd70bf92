"""A client's view of its examples, and populations made of clients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import Examples, shape_of, stack_clients
from fedjax_mem.core.examples import in_batches


def view(pop, client, **kwargs):
  count = pop.count[client]
  return Examples(pop.arrays, pop.index, pop.start[client], count, count, 9, **kwargs)


@pytest.mark.slow
def test_take_gives_the_clients_own_examples():
  pop = tiny.population()
  for client, data in enumerate(tiny.DATA):
    batch = view(pop, client).take(jnp.arange(len(data['y'])))
    np.testing.assert_array_equal(batch['x'], data['x'])
    np.testing.assert_array_equal(batch['y'], data['y'])


@pytest.mark.slow
def test_positions_beyond_the_count_never_show_another_client():
  pop = tiny.population()
  for client, data in enumerate(tiny.DATA):
    batch = view(pop, client).take(jnp.arange(12))
    beyond = np.broadcast_to(data['x'][-1], (12 - len(data['y']), tiny.FEATURES))
    np.testing.assert_array_equal(batch['x'][len(data['y']) :], beyond)


def test_rows_may_be_shared_and_in_any_order():
  pop = tiny.population(tiny.DATA[:2])
  pop = dataclasses.replace(pop, index=jnp.array([2, 2, 0, 5], jnp.int32))
  pop = dataclasses.replace(pop, start=jnp.array([0, 1]), count=jnp.array([1, 3]))
  whole = np.concatenate([tiny.DATA[0]['y'], tiny.DATA[1]['y']])
  np.testing.assert_array_equal(view(pop, 1).take(jnp.arange(3))['y'], whole[[2, 0, 5]])


def test_map_applies_transforms_after_the_gather_first_to_last():
  data = view(tiny.population(), 0)
  double, add = (lambda b: b | {'y': b['y'] * 2}), (lambda b: b | {'y': b['y'] + 1})
  both = data.map(double).map(add)
  np.testing.assert_array_equal(both.take(jnp.arange(3))['y'], tiny.DATA[0]['y'] * 2 + 1)
  assert data.transforms == () and len(both.transforms) == 2


def test_dtypes_stay_as_stored():
  pop = stack_clients([{'x': np.zeros((2, 4), np.uint8)}, {'x': np.ones((3, 4), np.uint8)}])
  assert view(pop, 1).take(jnp.arange(2))['x'].dtype == jnp.uint8
  assert shape_of(pop) == (2, 3, False)


def test_equal_clients_are_known_to_be_equal():
  assert shape_of(stack_clients([{'y': np.zeros(3)}] * 4)) == (4, 3, True)


@pytest.mark.parametrize(
  'clients, message',
  [
    ([], 'at least one client'),
    ([{'x': np.zeros((0, 2))}], r'client 0 must hold .* length >= 1'),
    ([{'x': np.zeros(2)}, {'y': np.zeros(2)}], 'client 1 must hold'),
    ([{'x': np.zeros(2), 'y': np.zeros(3)}], "client 0 .*'x': 2, 'y': 3"),
  ],
)
def test_bad_clients_are_refused_by_number(clients, message):
  with pytest.raises(ValueError, match=message):
    stack_clients(clients)


def test_a_population_is_a_tree_of_arrays():
  leaves = jax.tree.leaves(tiny.population())
  assert len(leaves) == 5 and all(isinstance(x, jax.Array) for x in leaves)


def test_a_client_without_examples_is_refused_by_number():
  whole = stack_clients([{'y': np.zeros(3)}] * 3)
  empty = dataclasses.replace(whole, count=jnp.asarray([3, 0, 3], jnp.int32))
  with pytest.raises(ValueError, match=r'population\.count .* 3 clients, of which \[1\]'):
    shape_of(empty)


@pytest.mark.parametrize('batch_size', [1, 4, 9, 50])
def test_a_fold_sees_each_example_once_whoever_runs_beside(batch_size):
  pop = tiny.population()
  longest = int(pop.count.max())

  def sums(start, count):
    own = Examples(pop.arrays, pop.index, start, count, jnp.int32(longest), longest)
    add = lambda carry, rows: carry + jnp.where(rows.mask[:, None], rows.batch['x'], 0).sum(0)
    zero = jnp.zeros(pop.arrays['x'].shape[1:])
    return own.fold(add, zero, batch_size)

  found = jax.vmap(sums)(pop.start, pop.count)  # clients of unlike sizes
  wanted = [data['x'].sum(0) for data in tiny.DATA]
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 2, 3, 7])
def test_a_fold_over_chosen_rows_sees_those_alone(batch_size):
  pop = tiny.population()
  client = int(pop.count.argmax())
  places, mask = jnp.array([3, 0, 2, 1, 3], jnp.int32), jnp.array([1, 1, 0, 1, 1], bool)

  def note(carry, rows):
    at = jnp.where(rows.mask, rows.positions, 9)
    return carry.at[at].add(1, mode='drop') + jnp.where(rows.number < 0, 1, 0)

  seen = view(pop, client).fold(note, jnp.zeros(5, jnp.int32), batch_size, (places, mask))
  assert seen.tolist() == [1, 1, 0, 2, 0]


def test_a_fold_over_chosen_rows_ends_with_the_last_of_any_client_beside():
  pop = tiny.population()
  masks = jnp.array([[1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0] * 7], bool)
  turns = lambda client, mask: view(pop, client).fold(
    lambda turns, rows: turns + 1, jnp.int32(0), 2, (jnp.arange(7), mask)
  )
  clients = jnp.arange(3)
  assert [int(turns(c, m)) for c, m in zip(clients, masks, strict=True)] == [1, 2, 0]
  assert jax.vmap(turns)(clients, masks).tolist() == [2, 2, 2]
  # Its condition is one for all, so that no client's carry has to be kept in a step.
  (loop,) = (
    e for e in jax.make_jaxpr(jax.vmap(turns))(clients, masks).eqns if e.primitive.name == 'while'
  )
  assert loop.params['cond_jaxpr'].out_avals[0].shape == ()


def test_batches_are_padded_with_the_first_example_which_does_not_count():
  held, mask = in_batches({'x': np.arange(5)}, batch_size=2, multiple=2)
  assert held['x'].tolist() == [[0, 1], [2, 3], [4, 0], [0, 0]]
  assert mask.tolist() == [[True, True], [True, True], [True, False], [False, False]]


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ('float16', 'int32'),
    ('uint32', 'int32'),
    ('bfloat16', 'int32'),
    ('float64', 'int64'),
    ('bfloat16', 'float16'),
    ('bool', 'uint8'),
  ],
)
def test_examples_have_the_dtype_that_jax_gives_them(first, second):
  parts = [np.array([1], jnp.dtype(first)), np.array([2], jnp.dtype(second))]
  made = stack_clients([{'x': part} for part in parts]).arrays['x']
  wanted = jnp.concatenate([jnp.asarray(x) for x in parts])
  assert made.dtype == wanted.dtype and made.tolist() == wanted.tolist()


def test_examples_may_be_lists_and_keys():
  assert stack_clients([{'x': [1, 2]}, {'x': [3]}]).arrays['x'].tolist() == [1, 2, 3]
  with pytest.raises(OverflowError):
    stack_clients([{'x': [2**40]}])
  keys = jax.random.split(jax.random.key(0), 3)
  assert (stack_clients([{'x': keys[:1]}, {'x': keys[1:]}]).arrays['x'] == keys).all()
