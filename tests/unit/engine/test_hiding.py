"""A select side after the draw can only leave clients out; sides that return something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import IncompatibleStages, Layer, Looks, Member, Stage, compose
from fedjax_mem.engine import hiding, simulate
from fedjax_mem.stages.select import poisson, uniform
from fedjax_mem.stages.weigh import equal

UPDATES = {'a': np.ones((9, 4), np.float32)}


def after(change, draw=None):
  """Returns the simulation of a draw and a select side that changes its cohort."""
  side = lambda ctx, draw, state: (draw._replace(cohort=change(draw.cohort)), state, {})
  own = Layer('own', select=Stage(side, facts=(Looks('nothing'),)))
  draw = uniform(9, 3) if draw is None else draw
  made = compose(given.algorithm(), draw, own, equal())
  return simulate(made, {'a': jnp.zeros(4)}, given.population(UPDATES))


def ids(sim, rounds=4):
  return sim.run(sim.init({'a': jnp.zeros(4)}), rounds)[1]['ids']


@pytest.mark.slow
def test_it_neither_draws_anew_nor_brings_back_who_was_not_drawn():
  one = Layer('own', select=Stage(lambda c, d, s: (d, s, {}), facts=(Looks('nothing'),)))
  plain = compose(given.algorithm(), poisson(9, 0.3), one, equal())
  plain = simulate(plain, {'a': jnp.zeros(4)}, given.population(UPDATES))
  on = lambda x: jnp.ones_like(x.real)
  everyone = lambda x: Member(jnp.arange(9), on(x), on(x), x.chance)
  only_first = lambda x: Member(jnp.zeros_like(x.id), on(x), on(x), x.chance)
  for change in (everyone, only_first):
    np.testing.assert_array_equal(ids(after(change, poisson(9, 0.3))), ids(plain))


def test_who_is_left_out_is_padding():
  drawn = Member(
    jnp.array([4, 2, 9]), *2 * [jnp.array([True, True, False])], jnp.array([0.5, 0.5, 1.0])
  )
  left = drawn._replace(real=jnp.array([True, False, True]), id=jnp.array([7, 7, 7]))
  found = hiding.narrowed(drawn, left, 9, 'own')
  wanted = Member([4, 9, 9], [True, False, False], [True, False, False], [0.5, 1.0, 1.0])
  jax.tree.map(np.testing.assert_array_equal, found, Member(*map(np.array, wanted)))
  gone = hiding.narrowed(drawn, drawn._replace(arrived=jnp.array([False, True, True])), 9, 'own')
  assert gone.id.tolist() == [4, 2, 9] and gone.arrived.tolist() == [False, True, False]


@pytest.mark.parametrize(
  ('change', 'got'),
  [
    (lambda x: x.id, 'got '),
    (lambda x: None, 'got None'),
    (lambda x: jax.tree.map(lambda a: a[:2], x), r'shapes \[\(2,\)'),
    (lambda x: x._replace(chance=1.0), r'shapes .*\(\)\]'),
  ],
)
def test_a_cohort_of_another_kind_is_refused(change, got):
  wanted = rf"'own' must leave a cohort, a Member of arrays \[3\], got.*{got[4:]}"
  with pytest.raises(IncompatibleStages, match=wanted):
    after(change)


def test_the_sampler_keeps_to_its_capacity():
  sampler = uniform(9, 3)
  larger = uniform(9, 4).select.apply
  sampler = sampler._replace(select=sampler.select._replace(apply=larger))
  with pytest.raises(IncompatibleStages, match=r"'select' must leave .*\[3\], got .*\(4,\)"):
    tiny_plan(sampler)


def tiny_plan(sampler):
  made = compose(given.algorithm(), sampler, equal())
  return simulate(made, {'a': jnp.zeros(4)}, given.population(UPDATES))


@pytest.mark.first(2)
@pytest.mark.parametrize(
  ('returns', 'got'),
  [
    (lambda m, s: (m, s), 'Message, tuple'),
    (lambda m, s: m, 'Message'),
    (lambda m, s: (m, s, None), 'Message, tuple, NoneType'),
    (lambda m, s: [m, s, {}], 'list'),
  ],
)
def test_every_side_returns_three_things(returns, got):
  for side in ('client', 'server', 'cohort'):
    own = Layer('own', **{side: Stage(lambda ctx, m, s: returns(m, s))})
    with pytest.raises(IncompatibleStages, match=rf"'own' must return \(value.*, got {got}"):
      simulate(
        compose(tiny.algorithm(), tiny.rota(), equal(), own), tiny.initial(), tiny.population()
      )
