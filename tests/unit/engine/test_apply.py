import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem import stages

UPDATES = {'a': np.array([[1.0, 2.0], [3.0, 4.0], [60.0, -5.0]]), 'b': np.array([0.5, 1.0, 2.0])}


@pytest.mark.slow
def test_without_layers_it_is_the_mean_by_weights():
  assert fm.apply(UPDATES).update['b'] == pytest.approx(3.5 / 3, rel=1e-6)
  given = fm.apply(UPDATES, weights=[1, 2, 5]).update
  np.testing.assert_allclose(given['a'], np.average(UPDATES['a'], 0, [1, 2, 5]), rtol=1e-6)
  np.testing.assert_allclose(given['b'], np.average(UPDATES['b'], 0, [1, 2, 5]), rtol=1e-6)


@pytest.mark.slow
def test_layers_run_in_their_order_and_report():
  flip = stages.attack.sign_flip(1)
  found = fm.apply(UPDATES, flip, stages.aggregate.median())
  np.testing.assert_array_equal(found.update['a'], [3.0, -2.0])
  assert found.metrics['sign_flip/attackers'] == 1


@pytest.mark.slow
def test_a_layer_that_draws_or_weighs_takes_the_place_of_the_default():
  drawn = fm.apply(UPDATES, stages.select.uniform(3, 1), seed=4)
  (who,) = drawn.metrics['ids']
  np.testing.assert_array_equal(drawn.update['a'], UPDATES['a'][who])
  weighed = fm.apply(UPDATES, stages.weigh.capped(2), weights=[1, 2, 5]).update
  np.testing.assert_allclose(weighed['b'], np.average(UPDATES['b'], 0, [1, 2, 2]), rtol=1e-6)


@pytest.mark.slow
def test_central_noise_is_added_to_the_sum_before_it_is_divided():
  (clipped,) = [fm.apply(UPDATES, stages.privacy.central(1.0, 0.0)).update]
  noised = fm.apply(UPDATES, stages.privacy.central(1.0, 0.01)).update
  for name in 'ab':
    assert 0 < np.abs(noised[name] - clipped[name]).max() < 6 * 0.01 / 3


@pytest.mark.parametrize(
  ('updates', 'weights'),
  [([], None), ({'a': np.zeros((2, 1)), 'b': np.zeros((3, 1))}, None), ([[1.0]], [1.0, 2.0]),
   ([[1.0]], [0.0]), ([[1.0]], [[1.0]]), ([[1.0]], [np.nan]), ([[1.0], [2.0, 3.0]], None)],
)  # fmt: skip
def test_rows_that_do_not_agree_are_refused(updates, weights):
  with pytest.raises(ValueError, match=r'updates must be a tree of arrays \[C, ...\]'):
    fm.apply(updates, weights=weights)


def test_what_is_no_real_number_is_refused():
  with pytest.raises(ValueError, match='updates must be real numbers'):
    fm.apply([[1j]])


def test_weights_that_noise_would_not_see_are_refused():
  with pytest.raises(ValueError, match="weights must be left out beside the noise of 'central'"):
    fm.apply(UPDATES, stages.privacy.central(1.0, 1.0), weights=[1, 2, 3])


@pytest.mark.slow
def test_tuples_are_nodes_and_lists_of_numbers_are_arrays():
  a, b = np.arange(9.0).reshape(3, 3), np.ones((3, 2), np.float16)
  one, two = fm.apply((a, b)).update
  np.testing.assert_allclose(one, a.mean(0), rtol=1e-6)
  assert two.shape == (2,) and two.dtype == np.float16
  assert fm.apply({'a': [a, ([1.0], [2.0], [6.0])]}).update['a'][1].tolist() == [3.0]


@pytest.mark.slow
def test_a_drawn_cohort_divides_by_what_is_expected():
  drawn = fm.apply([[2.0]] * 4, stages.select.uniform(4, 2), stages.privacy.central(9.0, 1e-6))
  assert drawn.update == pytest.approx([2.0], abs=1e-4)


@pytest.mark.slow
def test_samplers_that_see_messages_come_after_the_weighing():
  layers = stages.select.importance(3, 2, by='norm', capacity=3)
  assert fm.apply(UPDATES, layers).metrics['clients'] >= 0


def test_layers_that_do_not_fit_are_refused_as_in_any_round():
  with pytest.raises(fm.IncompatibleStages, match='works on tasks'):
    fm.apply(UPDATES, stages.attack.label_flip(1, num_classes=2))
