"""What clients hold out: whose it is, how much, drawn from the seed, and gone from training."""

import numpy as np
import pytest

from fedjax_mem.data import from_arrays, hold_out_of_clients, load

SIZES = [1, 2, 3, 4, 5, 10, 75]
ROWS = np.split(np.random.default_rng(3).permutation(100), np.cumsum(SIZES)[:-1])
DATA = from_arrays(np.zeros((100, 2), np.float32), np.arange(100) % 6, ROWS)


def lists(index, offsets):
  return [x.tolist() for x in np.split(index, offsets[1:-1])]


@pytest.mark.parametrize(
  ('share', 'sizes'),
  [
    (0.2, [0, 0, 1, 1, 1, 2, 15]),  # rounded half up
    (0.5, [0, 1, 2, 2, 3, 5, 38]),
    (0.99, [0, 1, 2, 3, 4, 9, 74]),  # one is left
    (0.01, [0, 0, 0, 0, 0, 0, 1]),
  ],
)
def test_each_client_holds_out_its_share_of_its_own_examples(share, sizes):
  data = hold_out_of_clients(DATA, share, 0)
  held = lists(data.held.index, data.held.offsets)
  assert [len(x) for x in held] == sizes
  for rows, kept, out in zip(ROWS, lists(data.index, data.offsets), held, strict=True):
    assert kept == [x for x in rows.tolist() if x not in out]  # in their order
    assert set(out) <= set(rows.tolist()) and len(set(out)) == len(out)
  assert data.held.index.dtype == np.int32 and data.held.offsets.dtype == np.int64


def test_the_draw_is_uniform_and_a_function_of_the_seed():
  first, again, other = (hold_out_of_clients(DATA, 0.4, s).held.index for s in (1, 1, 2))
  assert np.array_equal(first, again) and not np.array_equal(first, other)
  drawn = np.concatenate([hold_out_of_clients(DATA, 0.2, s).held.index for s in range(400)])
  seen = np.bincount(drawn, minlength=100)[ROWS[-1]]  # 15 of 75 in each of 400 draws
  assert abs(seen - 80).max() < 5 * 8


def test_the_draw_of_a_client_depends_on_no_other():
  more = from_arrays(np.zeros((100, 2), np.float32), np.arange(100) % 6, [*ROWS[:3], *ROWS[4:2:-1]])
  first, second = (hold_out_of_clients(x, 0.5, 1).held for x in (DATA, more))
  assert lists(*first)[:3] == lists(*second)[:3]
  twins = from_arrays(
    np.zeros((80, 1), np.float32), np.zeros(80, int), np.arange(80).reshape(2, 40)
  )
  held = lists(*hold_out_of_clients(twins, 0.5, 1).held)
  assert held[0] != [x - 40 for x in held[1]]


def test_labels_that_are_left_to_nobody_are_named():
  data = from_arrays(np.zeros((6, 1), np.float32), np.arange(6), [np.arange(6)])
  data = hold_out_of_clients(data, 0.5, 0)
  assert data.unused_labels == tuple(sorted(data.held.index.tolist()))


def test_nothing_is_held_out_unless_asked_and_only_once():
  assert hold_out_of_clients(DATA, 0.0, 0) is DATA
  once = hold_out_of_clients(DATA, 0.5, 0)
  with pytest.raises(ValueError, match=r'a part is held out, got 0\.5'):
    hold_out_of_clients(once, 0.5, 0)
  for share in (1.0, -0.1, True, float('nan')):
    with pytest.raises(ValueError, match='share must be'):
      hold_out_of_clients(DATA, share, 0)
  with pytest.raises(ValueError, match=r'an example of some client, got 0\.001 of at most 75'):
    hold_out_of_clients(DATA, 0.001, 0)


def test_noise_on_inputs_is_on_what_is_held_out_too():
  data = load('digits', partition='feature_noise', num_clients=5, sigma=1.0)
  held = hold_out_of_clients(data, 0.3, 0)
  assert held.arrays is data.arrays
