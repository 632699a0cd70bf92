"""Every rule against its NumPy twin, whatever the order of clients, up to its breakdown point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import robust

import fedjax_mem as fm
from fedjax_mem.core import IncompatibleStages, Rule
from fedjax_mem.stages import aggregate as rules

C, D, F = 11, 12, 2  # what Bulyan needs for two hostile clients
CENTER = np.linspace(-0.5, 0.5, D).astype(np.float32)
# name -> (layer, twin, whether it withstands F hostile clients without a bound on their size)
RULES = {
  'median': (rules.median(), robust.median, True),
  'trimmed_mean': (rules.trimmed_mean(F), robust.trimmed_mean(F), True),
  'krum': (rules.krum(F), robust.krum(F), True),
  'multi_krum': (rules.multi_krum(F), robust.multi_krum(F), True),
  'bulyan': (rules.bulyan(F), robust.bulyan(F), True),
  'geometric_median': (rules.geometric_median(8), robust.geometric_median(8, 1e-6), True),
  'centered_clipping': (
    rules.centered_clipping(0.7, 3),
    robust.centered_clipping(0.7, 3, CENTER),
    False,
  ),
  'norm_bounding': (rules.norm_bounding(2.0), robust.norm_bounding(2.0), False),
  'dnc': (rules.dnc(F, iterations=1), robust.dnc(F), True),
  'signguard': (rules.signguard(fraction=1.0), robust.signguard(0.1, 3.0), True),
  'nnm': (rules.nnm(F), robust.nnm(F), False),
}
# Every rule of the registry: also the one without a twin.
ORDERED = {name: layer for name, (layer, _, _) in RULES.items()} | {'bucketing': rules.bucketing(3)}
WITHSTAND = [name for name, (_, _, holds) in RULES.items() if holds]
RNG = np.random.default_rng(5)


@functools.cache
def _compiled(name):
  layer = ORDERED[name]

  @jax.jit
  def run(ids, arrived, weights, x):
    shared = {'a': jnp.asarray(CENTER[:4]).reshape(2, 2), 'b': jnp.asarray(CENTER[4:])}
    sent = robust.stack(x, weights)
    message, _, metrics = layer.cohort.apply(robust.context(ids, arrived, shared), sent, ())
    return message, metrics

  return run


def apply(name, x, weights=None, arrived=None, ids=None):
  """Returns (what sum and division make of the rule's stack, metrics), with a row of padding."""
  weights = np.ones(len(x)) if weights is None else weights
  arrived = np.ones(len(x), bool) if arrived is None else arrived
  ids = np.arange(len(x)) if ids is None else ids
  x = np.concatenate([x, np.full((1, D), np.nan)])
  message, metrics = _compiled(name)(
    np.append(ids, 99), np.append(arrived, False), np.append(weights, 3.0), x
  )
  rows, w = robust.unstack(message), np.asarray(message.weight, np.float64)
  assert np.isfinite(rows).all() and (rows[w == 0] == 0).all()
  return rows.astype(np.float64).sum(0) / max(w.sum(), 1e-30), metrics


def _updates():
  normal = RNG.normal(size=(C, D)) + 1
  few = np.repeat(RNG.normal(size=(3, D)), (5, 4, 2), axis=0)
  return {
    'normal': normal,
    'tied': few[RNG.permutation(C)],
    'same': np.repeat(normal[:1], C, axis=0),
    'zeros': np.zeros((C, D)),
    'huge': 1e25 * normal,
    'small': 1e-25 * normal,
    'vast': 1e36 * normal,
    'minute': 1e-33 * normal,
    'one dimension': normal[:, :1] * np.ones(D),
  }


UPDATES = _updates()


@pytest.mark.first(len(RULES))  # each on the first kind
@pytest.mark.parametrize('name', list(RULES))
@pytest.mark.parametrize('kind', list(UPDATES))
def test_a_rule_equals_its_twin(name, kind):
  bounds = ('centered_clipping', 'norm_bounding')
  if name in bounds and kind in ('huge', 'small', 'vast', 'minute'):
    return  # their bounds are in the units of an update: the kernels have tests of their own
  if name == 'dnc' and kind == 'tied':
    return  # several principal directions: see the test of what the order changes
  x = UPDATES[kind].astype(np.float32)
  expected = RULES[name][1](x.astype(np.float64), np.ones(C))
  found, metrics = apply(name, x)
  unit = np.abs(x).max() or 1.0
  if name == 'dnc' and kind in ('same', 'zeros'):
    expected = x[0]
  np.testing.assert_allclose(found / unit, expected / unit, atol=3e-6)
  assert metrics['skipped'] == 0 and metrics['rows'] == C


@pytest.mark.first(1)
@pytest.mark.parametrize('name', list(RULES))
def test_who_takes_no_part_changes_nothing(name):
  """Lost, weightless and broken clients are left out, exactly; weights count only where defined."""
  x = np.concatenate([UPDATES['normal'], np.full((4, D), 7.0)]).astype(np.float32)
  weights = np.append(RNG.integers(1, 9, C), [2.0, 0.0, 5.0, 5.0])
  arrived = np.append(np.ones(C, bool), [False, True, True, True])
  x[C + 2, 3], x[C + 3] = np.nan, np.inf
  order = RNG.permutation(len(x))
  found, metrics = apply(name, x[order], weights[order], arrived[order], order)
  expected = RULES[name][1](UPDATES['normal'].astype(np.float32).astype(np.float64), weights[:C])
  np.testing.assert_allclose(found, expected, atol=3e-6)
  assert metrics['rows'] == C


def _ties():
  """Returns updates full of ties, of many kinds."""
  half = RNG.normal(size=(5, D)) + 1
  few = np.repeat(RNG.normal(size=(3, D)), (5, 4, 2), axis=0)
  ladder = np.arange(C)[:, None] * np.ones(D)
  return {
    'none': UPDATES['normal'],
    'few different': few,
    'all the same': UPDATES['same'],
    'zeros': UPDATES['zeros'],
    'mostly zeros': np.concatenate([np.zeros((C - 2, D)), RNG.normal(size=(2, D))]),
    # Opposites have equal scores, which rounding tells apart.
    'opposites': np.concatenate([half, -half, np.zeros((1, D))]),
    'a ladder': ladder,
    'a ladder far off': 1000 + ladder,
    'half a ladder, half outliers': np.concatenate([ladder[:6], 100 * np.ones((C - 6, D))]),
    'corners': np.repeat(np.eye(6, D), 2, axis=0)[:C],
    'one corner each': np.eye(C, D),
    'small whole numbers': RNG.integers(-1, 2, size=(C, D)).astype(float),
  }


TIES = _ties()
# Who shares a bucket is drawn by id, so that another id is another draw.
BY_ID = ('bucketing',)


@pytest.mark.parametrize('name', list(rules.AGGREGATION))
def test_neither_the_order_of_clients_nor_their_ids_change_a_rule(name):
  """Clients in another order, ids and all; and the same clients under other ids."""
  assert set(rules.AGGREGATION) == set(ORDERED)
  rng = np.random.default_rng(8)
  for kind, x in TIES.items():
    x = x.astype(np.float32)
    unit = np.abs(x).max() or 1.0
    # Weights round rows that are tied apart.
    for weights in (np.ones(C), rng.integers(1, 20, C).astype(float)):
      one = apply(name, x, weights)[0] / unit
      for _ in range(4):
        order = rng.permutation(C)
        own = x[order], weights[order]
        np.testing.assert_allclose(apply(name, *own, ids=order)[0] / unit, one, 0, 1e-6, kind)
        if name not in BY_ID:
          np.testing.assert_allclose(apply(name, *own)[0] / unit, one, 0, 1e-6, kind)


def test_dnc_knows_ties_that_weights_round_apart():
  """Rows times their weights, and over them again: what is left is lifted by a power of 1,024."""
  x = np.eye(12, 50, dtype=np.float32)
  weights = np.array([7, 10, 11, 2, 2, 10, 11, 5, 6, 3, 18, 10], np.float32)
  for order in ([0, 8, 9, 7, 11, 2, 5, 3, 6, 10, 4, 1], [3, 11, 6, 0, 9, 1, 8, 4, 10, 2, 7, 5]):
    found = fm.apply(x[order], rules.dnc(1), weights=weights[order]).update
    np.testing.assert_allclose(found, x.mean(0), 0, 1e-6)
  many, row = np.zeros((50, 10_000), np.float32), RNG.normal(size=200)
  for i in range(50):  # the more coordinates, the more a sum rounds
    many[i, 200 * i : 200 * (i + 1)] = RNG.permutation(row)
  weights = RNG.integers(1, 20, 50).astype(np.float32)
  found = fm.apply(many, rules.dnc(1), weights=weights).update
  np.testing.assert_allclose(found, many.mean(0), 0, 1e-6)


@pytest.mark.slow
def test_bulyan_keeps_a_neighbour_to_the_end():
  """Of 0 … 5 the middle, whatever their order: the last scores are not those of no neighbour."""
  x = np.array([100.0, 0, 1, 2, 3, 4, 5], np.float32)[:, None] * np.ones(D, np.float32)
  layer = rules.bulyan(1)
  run = jax.jit(lambda x: robust.given(layer, x))
  for order in (np.arange(7), np.arange(7)[::-1], np.array([3, 5, 0, 1, 6, 4, 2])):
    np.testing.assert_allclose(run(x[order]), 2.5, rtol=1e-6)
    np.testing.assert_allclose(robust.bulyan(1)(x[order].astype(float), None), 2.5, rtol=1e-6)


@pytest.mark.parametrize('name', ['median', 'geometric_median'])
def test_they_hold_up_to_half(name):
  for hostile, holds in ((C // 2, True), (C // 2 + 1, False)):
    honest = (RNG.normal(size=(C - hostile, D)) * 0.1 + 1).astype(np.float32)
    x = np.concatenate([np.full((hostile, D), -1e5), honest]).astype(np.float32)
    assert (np.linalg.norm(apply(name, x)[0] - honest.mean(0)) < 2) == holds


def test_a_smoothing_that_vanishes_divides_by_no_zero():
  layer = rules.geometric_median(4, smoothing=1e-42)
  context = robust.context(np.arange(3), np.ones(3, bool))
  for x in (np.zeros((3, D)), np.ones((3, D))):
    sent = robust.stack(x, np.full(3, 9.0))
    message = jax.jit(lambda s: layer.cohort.apply(context, s, ())[0])(sent)
    np.testing.assert_allclose(robust.unstack(message), 9 * x, rtol=1e-6)


@pytest.mark.parametrize('size', [10.0, 1e5, 1e15])
@pytest.mark.parametrize('name', WITHSTAND)
def test_it_holds_with_f_hostile_clients(name, size):
  honest = (RNG.normal(size=(C - F, D)) * 0.1 + 1).astype(np.float32)
  lies = (np.full((F, D), -size), size * RNG.normal(size=(F, D)), np.eye(F, D) * size)
  for lie in lies[:1] if name == 'dnc' else lies:  # it looks in one direction
    x = np.concatenate([lie, honest]).astype(np.float32)
    found, _ = apply(name, x)
    assert np.linalg.norm(found - honest.mean(0)) < 0.8, lie[0, :3]


@pytest.mark.parametrize('name', [*WITHSTAND, 'nnm'])
def test_it_breaks_down_with_a_majority(name):
  honest = (RNG.normal(size=(3, D)) * 0.1 + 1).astype(np.float32)
  x = np.concatenate([np.full((C - 3, D), -1000.0), honest]).astype(np.float32)
  assert np.linalg.norm(apply(name, x)[0] - honest.mean(0)) > 100


def test_trimming_breaks_down_with_one_more():
  honest = np.ones((C - F - 1, D))
  x = np.concatenate([np.full((F + 1, D), 1e4), honest]).astype(np.float32)
  assert apply('trimmed_mean', x)[0].min() > 1e3
  np.testing.assert_allclose(apply('median', x)[0], 1)


@pytest.mark.parametrize(
  ('name', 'least'),
  [('trimmed_mean', 5), ('krum', 7), ('multi_krum', 7), ('bulyan', 11), ('dnc', 5), ('nnm', 5)],
)
def test_too_few_are_skipped(name, least):
  x = UPDATES['normal'].astype(np.float32)
  for count in (0, least - 1, least):
    arrived = np.arange(C) < count
    found, metrics = apply(name, x, arrived=arrived)
    assert int(metrics['skipped']) == (count < least) and metrics['rows'] == count
    assert (found == 0).all() == (count < least)
  assert RULES[name][0].fact(Rule).least == least


def test_krum_says_whom_it_chose_of_several_the_lowest_id():
  x = UPDATES['same'].astype(np.float32)
  ids = RNG.permutation(C) + 5
  assert apply('krum', x, ids=ids)[1]['chosen'] == 5
  x = UPDATES['normal'].astype(np.float32)
  best = int(np.argmin(robust.scores(x.astype(np.float64), F)))
  found, metrics = apply('krum', x, ids=ids)
  assert metrics['chosen'] == ids[best]
  np.testing.assert_allclose(found, x[best], rtol=1e-6)


def test_centered_clipping_remembers_what_it_gave():
  layer = RULES['centered_clipping'][0]
  message = robust.stack(np.arange(2 * D).reshape(2, D), [2.0, 3.0])
  total = jax.tree.map(lambda x: x.sum(0), message)
  center = jax.tree.map(jnp.zeros_like, total.update)
  same, kept, _ = layer.server.apply(robust.context([0], [True]), total, center)
  assert same is total
  np.testing.assert_allclose(kept['b'], np.asarray(total.update['b']) / 5, rtol=1e-6)
  nobody = total._replace(weight=jnp.float32(0))
  kept = layer.server.apply(robust.context([0], [True]), nobody, center)[1]
  assert (np.asarray(kept['b']) == 0).all()


def test_bucketing():
  layer = rules.bucketing(3)
  x = UPDATES['normal'].astype(np.float32)

  @jax.jit
  def run(ids, arrived, x, key):
    sent = robust.stack(x, jnp.full(C, 2.0))
    ctx = robust.context(ids, arrived)._replace(round_key=key)
    return layer.cohort.apply(ctx, sent, ())

  def buckets(ids, arrived, x, seed=0):
    message, _, metrics = run(ids, arrived, x, jax.random.key(seed))
    weight = np.asarray(message.weight)
    rows = robust.unstack(message)[weight > 0] / weight[weight > 0][:, None]
    assert metrics['rows'] == len(rows)
    return rows[np.lexsort(rows.T)], weight

  ids, everyone = np.arange(C), np.ones(C, bool)
  rows, weight = buckets(ids, everyone, x)
  assert len(rows) == 4  # of 3, 3, 3 and 2 clients
  assert weight.sum() == pytest.approx(2 * C) and len(set(weight[weight > 0].tolist())) == 1
  # Every client is in one bucket: sizes times means give the sum of all.
  sizes = [np.roll([3, 3, 3, 2], k)[:, None] for k in range(4)]
  assert min(np.abs((size * rows).sum(0) - x.sum(0)).max() for size in sizes) < 1e-4
  order = RNG.permutation(C)
  np.testing.assert_allclose(buckets(order, everyone, x[order])[0], rows, atol=1e-6)
  assert np.abs(buckets(ids, everyone, x, seed=1)[0] - rows).max() > 1e-3
  five = np.arange(C) < 5
  assert len(buckets(ids, five, x)[0]) == 2
  assert layer.fact(Rule).rows(C) == 4 and layer.fact(Rule).rows(12) == 4


def test_dnc_leaves_out_those_that_stand_out_and_skips_when_nobody_is_left():
  x = UPDATES['normal'].astype(np.float32)
  x[3] += 40
  assert apply('dnc', x)[1]['left'] == C - F
  layer = rules.dnc(5, iterations=50, sample=1)
  sent = robust.stack(x, np.ones(C))
  message, _, metrics = jax.jit(
    lambda s: layer.cohort.apply(robust.context(np.arange(C), np.ones(C, bool)), s, ())
  )(sent)
  assert metrics['left'] == 0 and metrics['skipped'] == 1
  assert (np.asarray(message.weight) == 0).all()


@pytest.mark.parametrize(
  'make',
  [
    lambda: rules.trimmed_mean(-1),
    lambda: rules.krum(0.5),
    lambda: rules.multi_krum(1, selected=0),
    lambda: rules.bulyan(True),
    lambda: rules.geometric_median(0),
    lambda: rules.centered_clipping(-1.0),
    lambda: rules.norm_bounding(0),
    lambda: rules.dnc(1, share=0),
    lambda: rules.signguard(upper=0),
    lambda: rules.signguard(lower=4.0, upper=3.0),
    lambda: rules.bucketing(0),
  ],
)
def test_bad_arguments(make):
  with pytest.raises(ValueError, match='must be'):
    make()


def test_what_a_rule_cannot_protect_is_refused():
  context = robust.context([0], [True])
  like = robust.stack(np.zeros((1, D)), [1.0])
  integers = like._replace(update={'a': jnp.zeros(3, jnp.int32)})
  with pytest.raises(IncompatibleStages, match="'median' works on updates of floats"):
    rules.median().row(context._replace(spec=integers))
  with pytest.raises(IncompatibleStages, match=r"\['tau'\] is summed beside it"):
    rules.krum(1).row(context._replace(spec=like._replace(aux={'tau': jnp.ones(())})))
