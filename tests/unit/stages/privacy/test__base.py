"""Sensitivity: no update, however made, moves the sum by more than the stated bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import IN_ROUND, Bound, Bounds, Context, Message, tree
from fedjax_mem.engine.round import make_round
from fedjax_mem.kernels.norms import clip
from fedjax_mem.stages import privacy

C = 0.3
rng = np.random.default_rng(0)

UPDATES = {
  'huge': {'a': np.full((3, 4), 3e38, np.float32), 'b': rng.normal(size=7).astype(np.float32)},
  'zero': {'a': np.zeros(5, np.float32)},
  'just inside': {'a': np.array([np.float32(C), 0, 0], np.float32)},
  'just outside': {'a': np.array([np.nextafter(np.float32(C), np.float32(1))], np.float32)},
  'one array only': {'a': np.zeros(9, np.float32), 'b': rng.normal(size=9).astype(np.float32)},
  'tiny arrays': {f'{i:04}': rng.normal(size=3).astype(np.float32) for i in range(1000)},
  'many small': {'a': np.full(10**6, 1e-20, np.float32)},
  'many': {'a': np.full(10**6, 1.1, np.float32)},
  'subnormal': {'a': np.full(100, 1e-42, np.float32)},
  'float16': {'a': jnp.full(4000, 6e-8, jnp.float16), 'b': jnp.full(3, 6e4, jnp.float16)},
  'float16 small': {'a': jnp.full(10**5, 3e-3, jnp.float16)},
  'bfloat16': {'a': jnp.asarray(rng.normal(size=4000), jnp.bfloat16)},
  'mixed': {'a': jnp.asarray(rng.normal(size=40), jnp.bfloat16), 'b': np.ones(5, np.float32)},
}
LAYERS = {
  'central': lambda: privacy.central(C, 0.0),
  'per layer': lambda: privacy.central(C, 0.0, per_layer=True),
  'discrete': lambda: privacy.central(C, 0.0, mechanism='discrete_gaussian'),
  'laplace': lambda: privacy.laplace(C, 0.0),
  'adaptive': lambda: privacy.adaptive_clip(0.0, 6.0, initial_l2_clip_norm=C),
  'local': lambda: privacy.local(C, 0.0)[0],
  'local laplace': lambda: privacy.local_laplace(C, 0.0)[0],
  'tree': lambda: privacy.tree(C, 1.0, 1),
  'matrix': lambda: privacy.matrix_factorization(C, 1.0, 4),
}


def sent(layer, given):
  """Returns what the client side of a layer sends, and its metrics."""
  shared = jnp.float32(C)
  ctx = Context(jax.random.key(0), None, jnp.int32(0), None, None, None, shared, None)
  message = Message(jax.tree.map(jnp.asarray, given), jnp.float32(1), {})
  client = lambda m: layer.client.apply(ctx, m, ())
  # A thousand arrays take half a minute to compile, and a second op by op.
  few = len(jax.tree.leaves(given)) < 100
  message, _, metrics = (jax.jit(client) if few else client)(message)
  return message.update, metrics


def size(name, update):
  power = 1 if 'laplace' in name else 2
  step = C / 1024 if name == 'discrete' else 1.0
  return np.linalg.norm(tiny.vec(update) * step, power)


@pytest.mark.first(2)
@pytest.mark.parametrize('kind', UPDATES)
@pytest.mark.parametrize('name', ['central', 'per layer', 'discrete', 'laplace', 'adaptive'])
def test_no_update_leaves_the_ball(name, kind):
  given = UPDATES[kind]
  update, metrics = sent(LAYERS[name](), given)
  before = size('laplace' if 'laplace' in name else '', given)
  assert size(name, update) <= C
  if name != 'per layer' and before < C * (1 - 2 * clip.MARGIN) and name != 'discrete':
    tiny.assert_same_bits(jax.tree.map(lambda x, u: x.astype(u.dtype), update, given), given)
  elif before > C * 1.001 and name not in ('per layer', 'discrete'):
    assert size(name, update) > 0.99 * C
    assert float(metrics['clipped'].total) == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYERS)
def test_an_update_that_is_not_finite_counts_as_no_client_or_under_a_claim_as_zeros(name):
  updates = {'a': rng.normal(size=(3, 6)).astype(np.float32)}
  sim = given.build(updates, LAYERS[name]())
  (expected,), _, _ = given.play(sim, updates={'a': updates['a'] * np.float32([[1], [0], [1]])})
  for bad in (np.nan, np.inf):
    broken = {'a': updates['a'].copy()}
    broken['a'][1, 2] = bad
    (released,), (metrics,), _ = given.play(sim, updates=broken)
    tiny.assert_same_bits(released, expected)
    named, clients = (-1, 3) if sim.claims else (1, 2)
    assert metrics['not_finite'].max() == named and metrics['clients'] == clients
    assert not sim.claims or metrics['zeroed'] == 1
    assert np.isfinite(released['a']).all()
    assert all(np.isfinite(v).all() for v in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['central', 'per layer', 'discrete', 'laplace', 'tree'])
def test_one_client_moves_the_released_sum_by_at_most_the_bound(name):
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  updates = {'a': draw(4, 50), 'b': draw(4, 3)}
  sim = given.build(updates, LAYERS[name]())
  base = given.sums(sim)[0]
  for factor in (0.0, -1e30, -5.0):
    other = {k: np.concatenate([v[:1] * np.float32(factor), v[1:]]) for k, v in updates.items()}
    moved = given.sums(sim, updates=other)[0] - base
    # Removed: the bound; replaced: twice that. The sums and the same noise round in float32.
    most = (1 if factor == 0 else 2) * C * (1 + 1e-5)
    assert 0 < np.linalg.norm(moved, 1 if name == 'laplace' else 2) <= most


def test_the_clip_is_of_the_whole_update_and_not_of_each_array():
  given = {str(i): np.full(4, 1.0, np.float32) for i in range(9)}
  update, _ = sent(LAYERS['central'](), given)
  np.testing.assert_allclose(tiny.vec(update), C / 6, rtol=1e-5)
  update, _ = sent(LAYERS['per layer'](), given | {'0': np.zeros(4, np.float32)})
  np.testing.assert_allclose(tiny.vec(update)[4:], C / 6, rtol=1e-5)


def test_stated_bounds_compose():
  for name, make in LAYERS.items():
    ctx = Context(*[None] * 6, IN_ROUND, None)  # where the plan asks
    bound = make().client.fact(Bounds).of(ctx, Bound())
    # Of the discrete one in steps of its grid.
    wanted = {'adaptive': IN_ROUND, 'discrete': 1024}.get(name, C)
    assert (bound.l1 if 'laplace' in name else bound.l2) == wanted
  assert privacy.local(C, 1.0)[1].client.fact(Bounds) is None


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYERS)
def test_what_comes_back_has_the_dtypes_of_what_was_sent(name):
  updates = {k: jnp.stack([jnp.asarray(x)] * 2) for k, x in UPDATES['mixed'].items()}
  shapes = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in updates.items()}
  sim = given.build(updates, LAYERS[name]())
  state = jax.eval_shape(sim._init, shapes, sim.population, *tiny.rooted(0))
  after = jax.eval_shape(make_round(sim.setting), state, sim.population, *tiny.rooted(0))[0]
  assert tree.shapes(after.params) == shapes


@pytest.mark.parametrize(
  'make', [privacy.central, privacy.local, lambda c, z: privacy.tree(c, z, 2)]
)
@pytest.mark.parametrize('bad', [0.0, -1.0, np.inf, np.nan, 'big'])
def test_bad_bounds_and_multipliers_are_refused(make, bad):
  with pytest.raises(ValueError, match='l2_clip_norm must be'):
    make(bad, 1.0)
  if bad != 0.0:
    with pytest.raises(ValueError, match='noise_multiplier must be'):
      make(1.0, bad)


@pytest.mark.slow
@pytest.mark.parametrize('options, expected', [({}, 1.0), ({'per_layer': True}, 0.5**0.5)])
def test_local_noise_clips_the_whole_update_unless_told_otherwise(options, expected):
  updates = {'a': np.full((1, 1), 3.0, np.float32), 'b': np.zeros((1, 1), np.float32)}
  sim = given.build(updates, privacy.local(1.0, 0.0, **options))
  np.testing.assert_allclose(given.sums(sim)[0], [expected, 0.0], rtol=1e-6)
