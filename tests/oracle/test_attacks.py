"""What hostile clients send against NumPy twins, and who they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import robust
from scipy import stats

from fedjax_mem.core import Examples, IncompatibleStages, Task, scalar_member
from fedjax_mem.stages import attack as attacks
from fedjax_mem.stages.attack._base import hostile

C, D = 9, 12
RNG = np.random.default_rng(2)
X = (RNG.normal(size=(C, D)) + 0.5).astype(np.float32)
WEIGHTS = np.arange(1, C + 1).astype(np.float32)
IDS = np.array([4, 0, 7, 1, 2, 9, 3, 8, 11])
BAD = IDS < 3
ON = np.ones(C, bool)
ON[[3, 5]] = False  # of the hostile ones, 1 is lost
GOOD = X[ON & ~BAD].astype(np.float64)


def send(layer, key=0, arrived=ON):
  """Returns the updates [C, D] that arrive, and the metrics."""
  sent = robust.stack(X, WEIGHTS)
  ctx = robust.context(IDS, arrived, key=key)
  message, _, metrics = jax.jit(lambda s: layer.cohort.apply(ctx, s, ()))(sent)
  np.testing.assert_array_equal(message.weight, WEIGHTS)
  rows = robust.unstack(message) / WEIGHTS[:, None]
  others = ~(BAD & arrived)
  np.testing.assert_array_equal(robust.unstack(message)[others], robust.unstack(sent)[others])
  return rows, metrics


def expect(layer, lie):
  """Fails unless hostile clients that take part send `lie`, [D] or [C, D], and others the truth."""
  rows, metrics = send(layer)
  wanted = np.where((BAD & ON)[:, None], lie, X)
  np.testing.assert_allclose(rows, wanted, rtol=2e-5, atol=2e-5)
  assert metrics['attackers'] == 2


def test_attacks_that_need_no_knowledge():
  expect(attacks.sign_flip(3), -X)
  expect(attacks.sign_flip(3, scale=2.5), -2.5 * X)
  expect(attacks.scaling(3, factor=7.0), 7 * X)
  took = WEIGHTS[ON].sum() / WEIGHTS[ON & BAD].sum()
  expect(attacks.scaling(3), took * X)
  expect(attacks.mimic(3), X[6])  # the honest one with the lowest id, 3
  expect(attacks.mimic(3, target=8), X[7])
  expect(attacks.mimic(3, target=9), X[6])  # 9 is lost


def test_model_replacement_replaces_the_model():
  """If honest clients send nothing, the average is the attackers' own."""
  honest = robust.stack(np.where(BAD[:, None], X, 0), WEIGHTS)
  layer = attacks.scaling(3)
  message = layer.cohort.apply(robust.context(IDS, ON), honest, ())[0]
  total = robust.unstack(message)[ON].sum(0) / WEIGHTS[ON].sum()
  own = WEIGHTS[ON & BAD]
  np.testing.assert_allclose(total, own @ X[ON & BAD] / own.sum(), rtol=1e-5)


@pytest.mark.slow
def test_noise_is_independent_and_of_its_size():
  rows, _ = send(attacks.gaussian(3, stddev=4.0))
  bad = rows[BAD & ON]
  assert np.abs(bad).max() < 25 and np.abs(bad[0] - bad[1]).min() > 1e-4
  assert 0.5 < bad.std() / 4.0 < 1.6
  assert np.abs(send(attacks.gaussian(3, stddev=4.0), key=1)[0][BAD & ON] - bad).max() > 0.1
  flat = send(attacks.gaussian(3, stddev=4.0))[0][BAD & ON]
  np.testing.assert_array_equal(flat, bad)


@pytest.mark.parametrize('z', [None, 0.7])
def test_alie(z):
  n, m = 7, 2
  by = stats.norm.ppf((n - m - (n // 2 + 1 - m)) / (n - m)) if z is None else z
  expect(attacks.alie(3, z=z), GOOD.mean(0) - by * GOOD.std(0))


def test_ipm():
  expect(attacks.ipm(3, factor=0.3), -0.3 * GOOD.mean(0))


@pytest.mark.first(2)
@pytest.mark.parametrize('direction', ['std', 'unit', 'sign'])
@pytest.mark.parametrize('name', ['min_max', 'min_sum'])
def test_min_max_and_min_sum_go_as_far_as_they_may(name, direction):
  mean = GOOD.mean(0)
  p = {'std': -GOOD.std(0), 'unit': -mean / np.linalg.norm(mean), 'sign': -np.sign(mean)}[direction]
  pairs = robust.distances(GOOD)

  def allowed(step):
    far = ((mean + step * p - GOOD) ** 2).sum(1)
    return far.max() <= pairs.max() if name == 'min_max' else far.sum() <= pairs.sum(1).max()

  low, high = 0.0, 1e3
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if allowed(middle) else (low, middle)
  assert low > 0.1
  expect(getattr(attacks, name)(3, direction=direction), mean + low * p)


@pytest.mark.first(1)
@pytest.mark.parametrize('make', [attacks.alie, attacks.ipm, attacks.min_max, attacks.mimic])
def test_without_honest_clients_nothing_breaks(make):
  rows, metrics = send(make(3), arrived=BAD)
  assert np.isfinite(rows).all() and metrics['attackers'] == 3
  rows, metrics = send(make(0))
  np.testing.assert_allclose(rows, X, rtol=1e-6)


def test_who_is_hostile():
  ids = jnp.arange(20)
  assert np.flatnonzero(hostile(3, None, None)(ids)).tolist() == [0, 1, 2]
  assert np.flatnonzero(hostile(0.2, 20, None)(ids)).tolist() == [0, 1, 2, 3]
  assert hostile(0.3, 10, None).count == 3
  drawn = np.flatnonzero(hostile(0.2, 20, 7)(ids)).tolist()
  assert len(drawn) == 4 and drawn != [0, 1, 2, 3]
  assert drawn == np.flatnonzero(hostile(4, 20, 7)(ids)).tolist()
  assert drawn != np.flatnonzero(hostile(4, 20, 8)(ids)).tolist()
  assert [bool(hostile(4, 20, 7)(jnp.int32(i))) for i in range(20)] == [
    i in drawn for i in range(20)
  ]
  for bad in (-1, 1.0, 1.5, True, 21):
    with pytest.raises(ValueError, match='attackers must be'):
      hostile(bad, 20, None)
  with pytest.raises(ValueError, match='num_clients must be given'):
    hostile(0.2, None, None)


def _task(bad, batch):
  arrays = {k: jnp.asarray(v) for k, v in batch.items()}
  n = len(batch['y'])
  rows = jnp.arange(n, dtype=jnp.int32)
  view = Examples(arrays, rows, jnp.int32(0), jnp.int32(n), jnp.int32(n), n)
  ctx = robust.context([0], [True])._replace(client=scalar_member(0 if bad else 5))
  return ctx, Task({}, view), rows


@pytest.mark.parametrize('bad', [True, False])
def test_labels_are_flipped(bad):
  y = np.array([0, 1, 2, 3, 3], np.int32)
  ctx, task, rows = _task(bad, {'x': np.zeros((5, 2), np.float32), 'y': y})
  task = attacks.label_flip(2, num_classes=4).client.apply(ctx, task, ())[0]
  np.testing.assert_array_equal(task.data.take(rows)['y'], 3 - y if bad else y)


@pytest.mark.slow
@pytest.mark.parametrize('bad', [True, False])
def test_a_backdoor_is_planted_and_measured(bad):
  x = RNG.uniform(size=(6, 5, 5, 1)).astype(np.float32)
  y = np.array([0, 1, 2, 3, 1, 2], np.int32)
  ctx, task, rows = _task(bad, {'x': x, 'y': y})
  half = attacks.backdoor(2, target=3, share=0.5, size=2, value=9.0).client.apply
  batch = half(ctx, task, ())[0].data.take(rows)
  square = x.copy()
  square[:3, 3:, 3:] = 9.0
  np.testing.assert_array_equal(batch['x'], square if bad else x)
  np.testing.assert_array_equal(batch['y'], [3, 3, 3, 3, 1, 2] if bad else y)

  class Model:
    """Takes everything with a square for label 3, the rest for 0."""

    @staticmethod
    def apply(params, x):
      marked = (x[:, -1, -1, 0] == 9.0).astype(jnp.float32)
      return jax.nn.one_hot(jnp.zeros(len(x), jnp.int32), 4) + 5 * marked[:, None] * params[None]

  for params, success in (([0, 0, 0, 1.0], 1), ([0, 0, 0, 0.0], 0)):
    hits, tries = half.measure(Model, jnp.array(params), {'x': jnp.asarray(x), 'y': jnp.asarray(y)})
    assert tries.sum() == 5 and hits.sum() == 5 * success


def test_vectors_have_a_trigger_too():
  half = attacks.backdoor(1, size=2, value=4.0).client.apply
  np.testing.assert_array_equal(half.triggered(jnp.zeros((1, 5)))[0], [0, 0, 0, 4, 4])


@pytest.mark.parametrize(
  'make',
  [
    lambda: attacks.sign_flip(1, scale=0),
    lambda: attacks.gaussian(1, stddev=-1.0),
    lambda: attacks.scaling(1, factor=0),
    lambda: attacks.alie(1, z=0),
    lambda: attacks.ipm(1, factor=-2),
    lambda: attacks.min_max(1, direction='up'),
    lambda: attacks.mimic(1, target=-1),
    lambda: attacks.label_flip(1, num_classes=1),
    lambda: attacks.backdoor(1, share=0),
    lambda: attacks.backdoor(1, target=10, num_classes=10),
    lambda: attacks.backdoor(1, value=float('nan')),
  ],
)
def test_bad_arguments_of_attacks(make):
  with pytest.raises(ValueError, match='must be'):
    make()


def test_integers_cannot_be_attacked():
  like = robust.stack(np.zeros((1, D)), [1.0])._replace(update=jnp.zeros(3, jnp.int32))
  with pytest.raises(IncompatibleStages, match="'alie' works on updates of floats"):
    attacks.alie(1).row(robust.context([0], [True])._replace(spec=like))
