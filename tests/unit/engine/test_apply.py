import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem import stages

UPDATES = {'a': np.array([[1.0, 2.0], [3.0, 4.0], [60.0, -5.0]]), 'b': np.array([0.5, 1.0, 2.0])}


def test_without_layers_it_is_the_mean_by_weights():
  assert fm.apply(UPDATES).update['b'] == pytest.approx(3.5 / 3, rel=1e-6)
  given = fm.apply(UPDATES, weights=[1, 2, 5]).update
  np.testing.assert_allclose(given['a'], np.average(UPDATES['a'], 0, [1, 2, 5]), rtol=1e-6)
  np.testing.assert_allclose(given['b'], np.average(UPDATES['b'], 0, [1, 2, 5]), rtol=1e-6)


def test_layers_run_in_their_order_and_report():
  flip = stages.attack.sign_flip(1)
  found = fm.apply(UPDATES, flip, stages.aggregate.median())
  np.testing.assert_array_equal(found.update['a'], [3.0, -2.0])
  assert found.metrics['sign_flip/attackers'] == 1


def test_a_layer_that_draws_or_weighs_takes_the_place_of_the_default():
  drawn = fm.apply(UPDATES, stages.select.uniform(3, 1), seed=4)
  (who,) = drawn.metrics['ids']
  np.testing.assert_array_equal(drawn.update['a'], UPDATES['a'][who])
  weighed = fm.apply(UPDATES, stages.weigh.capped(2), weights=[1, 2, 5]).update
  np.testing.assert_allclose(weighed['b'], np.average(UPDATES['b'], 0, [1, 2, 2]), rtol=1e-6)


def test_central_noise_is_added_to_the_sum_before_it_is_divided():
  (clipped,) = [fm.apply(UPDATES, stages.privacy.central(1.0, 0.0)).update]
  noised = fm.apply(UPDATES, stages.privacy.central(1.0, 0.01)).update
  for name in 'ab':
    assert 0 < np.abs(noised[name] - clipped[name]).max() < 6 * 0.01 / 3


@pytest.mark.parametrize(
  ('updates', 'weights'),
  [([], None), ({'a': np.zeros((2, 1)), 'b': np.zeros((3, 1))}, None), ([[1.0]], [1.0, 2.0]),
   ([[1.0]], [0.0]), ([[1.0]], [[1.0]])],
)  # fmt: skip
def test_rows_that_do_not_agree_are_refused(updates, weights):
  with pytest.raises(ValueError, match=r'updates must be a tree of arrays \[C, ...\]'):
    fm.apply(updates, weights=weights)


def test_layers_that_do_not_fit_are_refused_as_in_any_round():
  with pytest.raises(fm.IncompatibleStages, match='works on tasks'):
    fm.apply(UPDATES, stages.attack.label_flip(1, num_classes=2))
