"""Promises of layers, measured: what one client moves, and what a draw depends on.

Every layer that works on messages is put before and after noise on the sum. Where the plan accepts
it, one client's update is searched for what moves most of what the noise is added to, with the
client and without it: never more than the bound that the round composes. Every select side is run
on other data than it says it looks at. `--stage package.module:factory` asks the same of others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import suite
from reference import given, tiny

from fedjax_mem.core import (
  Bound,
  Bounds,
  Draw,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Member,
  Noises,
  Prepares,
  Stage,
  Trains,
  Weighs,
  compose,
  rounding,
  tree,
)
from fedjax_mem.engine import simulate
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import round_robin, uniform
from fedjax_mem.stages.weigh import equal

C, N = 0.5, 6
RNG = np.random.default_rng(4)
UPDATES = {
  'a': RNG.normal(size=(N, 6, 3)).astype(np.float32),
  'b': RNG.normal(size=(N, 9)).astype(np.float32),
}


def pytest_generate_tests(metafunc):
  if 'case' not in metafunc.fixturenames:
    return
  cases = suite.cases(metafunc.config.getoption('--stage'))
  wanted = selects if 'select' in metafunc.function.__name__ else messages
  found = [c for c in cases if wanted(c)]
  metafunc.parametrize('case', found, ids=[c.name for c in found])


def parts(case):
  made = case.make()
  return () if suite.is_optimizer(made) else (made,) if isinstance(made, Layer) else tuple(made)


def messages(case):
  """Returns whether a case is layers of messages that may stand beside noise on the sum."""
  own = parts(case)
  kinds = (Trains, Prepares, Weighs, Noises)
  return bool(own) and not any(x.select or any(x.fact(k) for k in kinds) for x in own)


def selects(case):
  return any(x.select for x in parts(case))


def probed(layer):
  """Returns the layer with a server side that keeps what it is given, in place of its noise."""
  floats = lambda t: jax.tree.map(lambda x: x.astype(jnp.float32), t)

  def server(ctx, message, state):
    update = jax.tree.map(lambda x, s: x.astype(s.dtype), message.update, ctx.spec.update)
    return message._replace(update=update), floats(message.update), {}

  init = lambda ctx: floats(tree.zeros(ctx.spec.update))
  return layer._replace(server=Stage(server, init))


@functools.cache
def leaving():
  """Returns a sampler of all clients, of which client 0 is away if a parameter is not 0."""
  stays = lambda ctx, cohort: cohort.arrived & ((ctx.params['b'][0] == 0) | (cohort.id != 0))
  change = lambda ctx, cohort: cohort._replace(arrived=stays(ctx, cohort))
  return tiny.changed(round_robin(N, N), change)


def tried(seed):
  """Yields updates of client 0 that may move much."""
  rng = np.random.default_rng(seed)
  for factor in (0.0, 1e-3, 1.0, -1.0, 1e6, -1e6):
    yield {k: factor * v[0] for k, v in UPDATES.items()}
    yield {k: factor * rng.normal(size=v[0].shape) for k, v in UPDATES.items()}
    yield {k: factor * v[1] for k, v in UPDATES.items()}  # as another has it
    spike = np.zeros(UPDATES['a'][0].size)
    spike[rng.integers(len(spike))] = factor
    yield {'a': spike.reshape(UPDATES['a'][0].shape), 'b': np.zeros(9)}


def seen(sim, name, client=None, away=False):
  """Returns what the layer of a simulation is given on the server in its first round, a vector."""
  updates = {k: v.copy() for k, v in UPDATES.items()}
  for k, v in (client or {}).items():
    updates[k][0] = v
  pop = given.population(updates)
  params = tree.zeros(sim.params)
  params['b'] = params['b'].at[0].set(float(away))
  state = sim._init(params, pop, *tiny.rooted(3))
  return tiny.vec(given.play(sim, state=state, updates=updates)[2].servers[name])


@pytest.mark.first(1)
@pytest.mark.parametrize('place', ['before', 'after'])
def test_one_client_moves_what_is_noised_by_no_more_than_its_bound(case, place):
  noise = privacy.central(C, 1.0)
  around = lambda x: (*parts(case), x) if place == 'before' else (x, *parts(case))
  try:
    sound = given.build(UPDATES, *around(noise), select=round_robin(N, N))
  except (IncompatibleStages, ValueError):
    return  # refused: nothing is promised
  layers, specs = sound.setting.layers, sound.setting.specs
  bound = layers.bound(next(x for x in layers if x.name == noise.name), 'server', specs).l2
  probe = given.build(UPDATES, *around(probed(noise)), select=leaving())
  without_it = seen(probe, noise.name, away=True)
  rows = [seen(probe, noise.name, update) for update in tried(0)]
  assert max(np.linalg.norm(row - without_it) for row in rows) <= bound * (1 + 1e-4)
  assert max(np.linalg.norm(a - b) for a in rows for b in rows) <= 2 * bound * (1 + 1e-4)


def mixing():
  """Returns a layer that copies one client's message to all, and says that it bounds one."""
  apply = lambda ctx, m, s: (
    jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), m),
    s,
    {},
  )
  return Layer('mixes', cohort=Stage(apply, facts=(Bounds(lambda ctx, b: b),)))


@pytest.mark.slow
def test_a_promise_that_does_not_hold_is_measured():
  case = suite.Case('mixing', mixing, {})
  with pytest.raises(AssertionError):
    test_one_client_moves_what_is_noised_by_no_more_than_its_bound(case, 'before')


def other_data(kept):
  """Returns the population with all data changed but that of the client `kept` (None: all)."""
  rng = np.random.default_rng(8)
  data = [
    x if i == kept else {'x': rng.normal(size=x['x'].shape).astype(np.float32) * 9, 'y': x['y']}
    for i, x in enumerate(tiny.DATA)
  ]
  return tiny.population(data)


@pytest.mark.first(1)
def test_a_select_side_depends_on_no_more_data_than_it_says(case):
  own = parts(case)
  looks = [x.select.fact(Looks) for x in own if x.select]
  if any(x is None or x.at == "others' data" for x in looks):
    return  # nothing is promised, and a claim is refused
  drawing = () if any(x.fact(Draws) for x in own) else (uniform(tiny.N, tiny.C),)
  layers = compose(tiny.algorithm(), *drawing, *own, equal())
  sim = tiny.build(layers)
  cohorts = lambda pop: tiny.execute(sim, pop=pop)[1]['ids']
  here = cohorts(tiny.population())
  if all(x.at == 'nothing' for x in looks):
    np.testing.assert_array_equal(cohorts(other_data(None)), here)
    return
  for client in range(tiny.N):
    there = cohorts(other_data(client))
    np.testing.assert_array_equal((there == client).any(1), (here == client).any(1))


def peeking():
  """Returns a sampler that draws by what clients reported, and says that it looks at nothing."""

  def select(ctx, draw, state):
    layer = uniform(tiny.N, tiny.C)
    draw, state, metrics = layer.select.apply(ctx, draw, state)
    shift = jnp.int32(jnp.abs(state_of(ctx)) * 1e3)
    cohort = draw.cohort._replace(id=(draw.cohort.id + shift) % tiny.N)
    return draw._replace(cohort=cohort), state, metrics

  state_of = lambda ctx: jnp.abs(ctx.params['w']).sum()
  law = Draws('odd', tiny.N, tiny.C, tiny.C)
  return Layer('select', select=Stage(select, facts=(law, Looks('nothing'))))


@pytest.mark.slow
def test_a_sampler_that_looks_where_it_says_it_does_not_is_found():
  with pytest.raises(AssertionError):
    test_a_select_side_depends_on_no_more_data_than_it_says(suite.Case('peeking', peeking, {}))


DRAWN = 600  # rounds, of which frequencies tell


def members(case):
  """Returns (law of the draw, who is in which round [R, N]) of a sampler that looks at nothing."""
  own = parts(case)
  sim = tiny.build(compose(tiny.algorithm(), *own, equal()))
  ids = np.asarray(sim.cohorts(sim.init(tiny.initial()), DRAWN))
  counts = np.stack([np.bincount(row[row < tiny.N], minlength=tiny.N) for row in ids])
  assert ids.min() >= 0 and counts.max() == 1, 'a client stands twice in a cohort'
  return sim.setting.layers.draws, counts


@pytest.mark.first(3)
def test_select_draws_by_the_law_that_it_states(case):
  own = parts(case)
  blind = all(x.select.fact(Looks) == Looks('nothing') for x in own)
  if not blind or not any(x.fact(Draws) for x in own):
    return  # one that no claim goes with, or another layer's draw
  law, on = members(case)
  assert law.population == tiny.N and on.sum(1).max() <= law.capacity
  for client in on.T:
    gaps = np.diff(np.flatnonzero(client))
    assert gaps.size == 0 or gaps.min() >= law.min_sep
  if law.scheme not in ('poisson', 'without_replacement'):
    return  # nothing amplifies: no chance is claimed
  rate = law.expected / law.population
  near = lambda found, chance: abs(found - chance) < 5 * np.sqrt(chance * (1 - chance) / DRAWN)
  assert all(near(x, rate) for x in on.mean(0))
  fixed = law.scheme == 'without_replacement'
  both = rate * (law.expected - 1) / (law.population - 1) if fixed else rate**2
  together = (on.T @ on / DRAWN)[~np.eye(law.population, dtype=bool)]
  assert all(near(x, both) for x in together)
  # Of Poisson cohorts the variance of the size, 5 standard deviations of it at most away.
  wanted = 0 if fixed else law.population * rate * (1 - rate)
  assert abs(on.sum(1).var() - wanted) <= 5 * wanted * np.sqrt(2 / DRAWN)
  assert not fixed or (on.sum(1) == law.expected).all()
  # Rounds are drawn independently of each other.
  again = (on[1:] * on[:-1]).mean(0)
  assert all(near(x, rate**2) for x in again)


def lying(scheme, draw):
  """Returns a sampler of half the clients that draws otherwise than it states."""
  half = tiny.N // 2

  def select(ctx, given, state):
    ids = jnp.asarray(draw(ctx, half), jnp.int32)
    on = jnp.ones(half, bool)
    return given._replace(cohort=Member(ids, on, on, jnp.full(half, 0.5))), state, {}

  law = Draws(scheme, tiny.N, half, half, 3 if scheme == 'cyclic' else 1)
  return Layer('select', select=Stage(select, facts=(law, Looks('nothing'))))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('scheme', 'draw'),
  [
    ('poisson', lambda ctx, half: uniform(tiny.N, half).select.apply(ctx, Draw(), ())[0].cohort.id),
    ('without_replacement', lambda ctx, half: jnp.arange(half)),
    ('without_replacement', lambda ctx, half: jnp.zeros(half)),
    (
      'without_replacement',
      lambda ctx, half: (
        2 * jnp.arange(half) + jax.random.bernoulli(ctx.key, shape=(half,)).astype(jnp.int32)
      ),
    ),
    ('cyclic', lambda ctx, half: jnp.arange(half)),
  ],
  ids=['fixed size as poisson', 'the first ones', 'one client in every row', 'strata', 'no pause'],
)
def test_a_sampler_that_draws_by_another_law_is_found(scheme, draw):
  case = suite.Case(f'lying-{scheme}', functools.partial(lying, scheme, draw), {})
  with pytest.raises(AssertionError):
    test_select_draws_by_the_law_that_it_states(case)


def test_bounds_are_numbers():
  made = compose(given.algorithm(), round_robin(N, N), equal(1.0), privacy.central(C, 1.0))
  told = C * (1 + rounding(N))  # the clip norm, and what the sum may be rounded by
  assert made.bound(made[-1], 'server', {}) == Bound(l2=told, linf=told, rows=1)
  simulate(made, {k: jnp.zeros(v.shape[1:]) for k, v in UPDATES.items()}, given.population(UPDATES))
