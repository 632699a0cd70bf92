"""Losses and scores of tasks against scikit-learn, NumPy in float64, and many sets at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from fedjax_mem.tasks import (
  TASKS,
  Classification,
  LearningTask,
  MultiLabel,
  NextToken,
  Regression,
  as_task,
)

RNG = np.random.default_rng(7)
T, K = 60, 5
# Sets of examples: one of a single example, small and large ones.
OFFSETS = np.array([0, 1, 4, 10, 35, T])
LOGITS = RNG.normal(size=(T, K)).astype(np.float32)
CLASSES = np.where(RNG.random(T) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, T)).astype(np.int32)
NUMBERS = (LOGITS + RNG.normal(size=(T, K))).astype(np.float32)
NUMBERS[4:10, 0] = 3.0  # constant in one set
HOT = (RNG.random((T, K)) < expit(LOGITS)).astype(np.uint8)
COARSE = np.round(LOGITS)  # equal logits are one threshold
TOKENS = RNG.integers(1, K, (T, 4)).astype(np.int32)
TOKENS[RNG.random((T, 4)) < 0.3] = 0
TOKENS[0], TOKENS[11] = 0, 0
SEQUENCES = RNG.normal(size=(T, 4, K)).astype(np.float32)


def sets():
  return [slice(a, b) for a, b in itertools.pairwise(OFFSETS)]


def of(task, outputs, y, offsets=OFFSETS):
  kept = jax.jit(task.kept)(outputs, y)
  return task.scores({name: np.asarray(x) for name, x in kept.items()}, offsets)


def test_macro_f1_is_scikit_learn_s_for_every_set():
  got = of(Classification(), LOGITS, CLASSES)['macro_f1']
  guess = LOGITS.argmax(1)
  expected = [sk.f1_score(CLASSES[s], guess[s], average='macro') for s in sets()]
  np.testing.assert_allclose(got, expected, rtol=1e-12)
  assert len(set(expected)) > 3


@pytest.mark.filterwarnings('ignore:R.2 score is not well-defined')
def test_r2_is_scikit_learn_s_for_every_set():
  exact = LOGITS.copy()
  exact[4:10, 0] = 3.0  # met exactly in the set where it is constant
  for outputs in (LOGITS, exact):
    got = of(Regression(), outputs, NUMBERS)['r2']
    wide = NUMBERS.astype(np.float64), outputs.astype(np.float64)
    expected = [sk.r2_score(wide[0][s], wide[1][s]) for s in sets()]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert np.isnan(got).tolist() == [True, False, False, False, False]
  one = of(Regression(), LOGITS[:, :1], NUMBERS[:, 0])['r2']
  np.testing.assert_allclose(one[4], sk.r2_score(NUMBERS[35:, 0], LOGITS[35:, 0]), rtol=1e-5)


@pytest.mark.parametrize('logits', [LOGITS, COARSE], ids=['distinct', 'ties'])
def test_mean_average_precision_is_scikit_learn_s_for_every_set(logits):
  hot = HOT.copy()
  hot[4:10, 2] = 0  # no example of a label: it is left out
  hot[1:4] = 0  # no label at all
  got = of(MultiLabel(), logits, hot)['mean_average_precision']
  for value, s in zip(got, sets(), strict=True):
    some = hot[s].any(0)
    if not some.any():
      assert np.isnan(value)
      continue
    each = [sk.average_precision_score(hot[s][:, k], logits[s][:, k]) for k in np.flatnonzero(some)]
    assert value == pytest.approx(np.mean(each), rel=1e-9)
  assert np.isnan(got).sum() == 1


def test_perplexity_is_of_tokens_that_are_no_padding():
  nats = -np.take_along_axis(log_softmax(SEQUENCES.astype(np.float64), -1), TOKENS[..., None], -1)[
    ..., 0
  ]
  real = TOKENS != 0
  got = of(NextToken(0), SEQUENCES, TOKENS)['perplexity']
  assert np.isnan(got[0])  # nothing but padding
  for value, s in list(zip(got, sets(), strict=True))[1:]:
    assert value == pytest.approx(np.exp(nats[s][real[s]].mean()), rel=1e-5)
  whole = of(NextToken(), SEQUENCES, TOKENS)['perplexity']
  assert whole[4] == pytest.approx(np.exp(nats[35:].mean()), rel=1e-5)
  expected = (nats * real).sum(1) / np.maximum(real.sum(1), 1)
  values = jax.jit(NextToken(0).values)(SEQUENCES, TOKENS)
  np.testing.assert_allclose(values['loss'], expected, rtol=1e-5)
  right = ((SEQUENCES.argmax(-1) == TOKENS) * real).sum(1) / np.maximum(real.sum(1), 1)
  np.testing.assert_allclose(values['accuracy'], right, rtol=1e-6)


def test_losses_are_those_of_float64():
  z, hot = LOGITS.astype(np.float64), HOT.astype(np.float64)
  squared = ((z - NUMBERS) ** 2).mean(1)
  np.testing.assert_allclose(Regression().loss(LOGITS, NUMBERS), squared, rtol=1e-5)
  binary = -(hot * np.log(expit(z)) + (1 - hot) * np.log(expit(-z))).mean(1)
  np.testing.assert_allclose(MultiLabel().loss(LOGITS, HOT), binary, rtol=1e-5)
  picked = -log_softmax(z, -1)[np.arange(T), CLASSES]
  values = Classification().values(LOGITS, CLASSES)
  np.testing.assert_allclose(values['loss'], picked, rtol=1e-5)
  assert np.asarray(values['accuracy']).tolist() == (z.argmax(1) == CLASSES).tolist()
  large = jnp.array([[1e4, -1e4]])
  assert MultiLabel().loss(large, jnp.array([[0, 1]], jnp.uint8)).tolist() == [1e4]  # no overflow


def test_each_kind_of_label_is_checked():
  for task, y, message in (
    (Classification(), CLASSES[:, None], 'one class an example'),
    (Classification(), CLASSES + 3, r'must be in \[0, num_classes = 5\), got 3 to 7'),
    (NextToken(), CLASSES, 'a sequence an example'),
    (Regression(), NUMBERS.astype(np.float64), r"arrays\['y'\] must be float32 \[T, 5\].*float64"),
    (Regression(), np.full((3, K), np.inf, np.float32), 'must be finite, got .* in row 0'),
    (Regression(), NUMBERS[:, :3], r'got float32 \(60, 3\)'),
    (MultiLabel(), HOT + 1, 'must be 0 or 1 for each label, got 2'),
    (MultiLabel(), HOT.astype(np.float32), 'must be uint8'),
  ):
    with pytest.raises(ValueError, match=message):
      task.check('arrays', y, K)
  for task in (Classification(), NextToken()):
    with pytest.raises(ValueError, match='num_classes must be an integer >= 2, got 1'):
      task.check_outputs(1)
  Regression().check_outputs(1)
  for task, y in ((Regression(), NUMBERS), (MultiLabel(), HOT), (NextToken(), TOKENS)):
    with pytest.raises(
      ValueError, match=f"a model for the task '{task.name}' must be of the shape"
    ):
      task.loss(LOGITS[:, :3], y)


def test_tasks_are_known_by_name_and_state_what_they_score():
  for name in TASKS:
    task = as_task(name)
    assert task.name == name and as_task(task) is task and hash(task) == hash(as_task(name))
    assert isinstance(task, LearningTask) and 'loss' in task.less and task.main not in task.less
  with pytest.raises(ValueError, match="Did you mean 'regression'"):
    as_task('regresion')
  with pytest.raises(ValueError, match='must be a LearningTask or the name of one, got 3'):
    as_task(3)
