"""What a round accepts, how it is indexed, and what composes over its layers."""

import dataclasses
import math

import pytest
from reference import tiny

from fedjax_mem.core import (
  IN_ROUND,
  UNKNOWN,
  Attacks,
  Bound,
  Bounds,
  Draws,
  Fact,
  IncompatibleStages,
  Layer,
  Looks,
  Prepares,
  Round,
  Rule,
  Stage,
  Trains,
  compose,
  known,
)
from fedjax_mem.stages.select import dropout
from fedjax_mem.stages.weigh import equal

passes = lambda ctx, value, state: (value, state, {})
zero = lambda ctx: 0


def test_layers_and_tuples_are_flattened_in_order():
  pair = (Layer('one'), Layer('two'))
  names = [x.name for x in compose(tiny.layers(), pair, Layer('three'))]
  assert names == [x.name for x in tiny.layers()] + ['one', 'two', 'three']


@pytest.mark.parametrize(
  'parts, message',
  [
    ((tiny.rota(), equal()), r'exactly one layer must train \(state Trains\), got \[\]'),
    ((tiny.algorithm(), equal()), r'exactly one layer must draw the cohort .*, got \[\]'),
    ((tiny.algorithm(), dropout(0.1), equal()), r'exactly one layer must draw .*, got \[\]'),
    ((tiny.algorithm(), tiny.rota(), equal(), equal()), 'distinct, got .*weigh.*weigh'),
    (
      (tiny.algorithm(), tiny.rota()._replace(name='a'), tiny.rota()),
      r"draw the cohort .*, got \['a', 'select'\]",
    ),
    ((tiny.algorithm()._replace(server=None), tiny.rota(), equal()), 'must have a server side'),
    ((tiny.algorithm(), tiny.rota()), r'weigh the clients, such as by_examples\(\) .*, got \[\]'),
    (
      (tiny.algorithm(), tiny.rota(), equal(), equal()._replace(name='again')),
      r"got \['weigh', 'again'\]",
    ),
    ((Layer('c', cohort=Stage(passes)), tiny.layers()), "'c' works on messages: .* after"),
    (
      (tiny.layers(), Layer('p', client=Stage(passes, facts=(Prepares(),)))),
      "'p' works on tasks: .* before",
    ),
  ],
)
def test_what_is_not_a_round_is_refused(parts, message):
  with pytest.raises(IncompatibleStages, match=message):
    compose(*parts)


@pytest.mark.parametrize(
  ('layer', 'words'),
  [
    (Layer('x', client=Stage(passes, facts=(Rule(),))), "client side of 'x' states Rule, .*belong"),
    (Layer('x', cohort=Stage(passes, facts=(Looks('nothing'),))), 'states Looks, .*belong'),
    (Layer('x', cohort=Stage(passes, facts=(Attacks(), Attacks()))), 'Attacks, .*already'),
    (
      Layer('x', client=Stage(passes, zero), cohort=Stage(passes, zero)),
      r"'x' must declare a state on one of its sides \('client', 'cohort'\)",
    ),
    (
      Layer('x', select=Stage(passes, zero, (Looks('nothing'),)), server=Stage(passes, zero)),
      r"\('select', 'server'\), got two",
    ),
  ],
)
def test_facts_and_states_stand_once_and_where_they_belong(layer, words):
  with pytest.raises(IncompatibleStages, match=words):
    compose(tiny.layers(), layer)


def test_what_is_not_a_layer_or_a_stage_is_refused_and_shown():
  with pytest.raises(ValueError, match='must be a Layer, got 3'):
    compose(tiny.algorithm(), (3,))
  with pytest.raises(ValueError, match="the client side of 'x' must be a Stage, got <function"):
    compose(tiny.layers(), Layer('x', client=passes))


def test_a_round_is_indexed():
  made = compose(tiny.layers(), dropout(0.1))
  names = lambda layers: [x.name for x in layers]
  assert made.drawing.name == 'select' and made.draws.population == tiny.N
  assert made.algorithm.name == 'algorithm' and made.weighing.name == 'weigh'
  assert names(made.selecting) == ['select', 'dropout']
  assert names(made.before(made.weighing)) == ['algorithm', 'select']
  assert names(made.after(made.weighing)) == ['dropout']
  assert [(x.name, side) for x, side, _ in made.having(Looks)] == [
    ('select', 'select'),
    ('dropout', 'select'),
  ]
  assert made.blind and compose(*made) == made


@pytest.mark.parametrize(
  'more',
  [
    {'select': Stage(passes, facts=(Looks("others' data"),))},
    {'select': Stage(passes)},
    {'select': Stage(passes, facts=(Looks('nothing'),)), 'server': Stage(passes)},
  ],
)
def test_who_learns_from_clients_is_not_blind(more):
  assert not compose(tiny.layers(), Layer('more', **more)).blind


@dataclasses.dataclass(frozen=True)
class Kin(Trains):
  """A fact of research code."""


def test_a_fact_is_found_by_its_exact_type():
  stage = Stage(passes, facts=(Kin(),))
  assert stage.fact(Kin) == Kin() and stage.fact(Trains) is None and stage.fact(Fact) is None
  layer = Layer('x', client=stage)
  assert layer.fact(Kin) == Kin() and layer.fact(Draws) is None
  # Who replaces a side loses its facts.
  assert layer._replace(client=Stage(passes)).fact(Kin) is None


def bounding(name, of, side='client', why=''):
  return Layer(name, **{side: Stage(passes, facts=(Bounds(of, why),))})


def of(layers, name, side='server'):
  made = compose(*layers)
  return made.bound(next(x for x in made if x.name == name), side, {})


NOISE = Layer('noise', server=Stage(passes))
CLIP = bounding('clip', lambda ctx, bound: Bound(l2=2.0))


def test_bounds_compose_out_to_the_sum_and_back():
  double = bounding('double', lambda ctx, bound: bound.scaled(2))
  halve = double._replace(server=Stage(passes, facts=(Bounds(lambda ctx, b: b.scaled(0.5)),)))
  base = (tiny.algorithm(), tiny.rota(), equal())
  assert of((*base, NOISE), 'noise').l2 == UNKNOWN
  assert of((*base, CLIP, NOISE), 'noise') == Bound(l2=2.0, rows=1)
  assert of((*base, CLIP, NOISE, double), 'noise').l2 == 4
  assert of((*base, CLIP, NOISE, halve), 'noise').l2 == 2  # the server side takes it back
  # A side that states nothing leaves everything unknown, whichever it is.
  for side in ('client', 'cohort', 'server'):
    silent = Layer('silent', **{side: Stage(passes)})
    assert of((*base, CLIP, NOISE, silent), 'noise').l2 == UNKNOWN
  assert of((*base, Layer('silent', client=Stage(passes)), CLIP, NOISE), 'noise').l2 == 2
  # Who replaces a server side loses what it promised.
  broken = halve._replace(server=Stage(lambda ctx, m, s: (m, s, {})))
  assert of((*base, CLIP, NOISE, broken), 'noise').l2 == UNKNOWN


def test_a_cohort_side_may_let_one_client_change_the_messages_of_others():
  base = (tiny.algorithm(), tiny.rota(), equal())
  mixing = Layer('mixing', cohort=Stage(passes))
  assert of((*base, mixing, CLIP, NOISE), 'noise') == Bound(l2=UNKNOWN, rows=UNKNOWN)
  two = bounding('two', lambda ctx, bound: bound._replace(rows=2), 'cohort')
  # Two messages go from one place in the ball to another: no clip takes that back.
  assert of((*base, two, CLIP, NOISE), 'noise').l2 == 2 * 2 * 2.0
  assert of((*base, CLIP, two, NOISE), 'noise').l2 == 8.0
  rows = bounding('rows', lambda ctx, bound: Bound(rows=bound.rows), 'cohort')
  assert of((*base, rows, CLIP, NOISE), 'noise') == Bound(l2=2.0, rows=1)
  # A client side sees one client: it cannot state another number.
  claims = bounding('claims', lambda ctx, bound: Bound(l2=1.0, rows=1))
  assert of((*base, mixing, claims, NOISE), 'noise').rows == UNKNOWN


def test_what_is_known_in_the_round_absorbs_arithmetic_and_refuses_comparison():
  bound = Bound(l2=IN_ROUND).scaled(3)
  assert bound.l2 is IN_ROUND and 1 + 2 * IN_ROUND / 3 - 1 is IN_ROUND and IN_ROUND**2 is IN_ROUND
  assert (
    IN_ROUND + UNKNOWN == UNKNOWN and repr(IN_ROUND) == 'IN_ROUND' and IN_ROUND['x'] is IN_ROUND
  )
  assert known(IN_ROUND) and known(0.0) and not known(UNKNOWN)
  with pytest.raises(TypeError):
    assert IN_ROUND < 3
  with pytest.raises(TypeError):
    min(IN_ROUND, 3)


@pytest.mark.parametrize(
  ('made', 'words'),
  [
    (lambda: Bounds(0.5), 'of must be'),
    (lambda: Bounds(lambda bound: bound), r'of must take \(ctx, bound\)'),
    (lambda: Bound(l2=1.0).scaled(-1.0), 'factor must be >= 0, got -1.0'),
    (lambda: bounded(lambda ctx, b: 0.5), "'own' must state a Bound, got 0.5"),
    (lambda: bounded(lambda ctx, b: b._replace(l2=-1.0)), "'own' must state l2 >= 0, got -1.0"),
    (lambda: bounded(lambda ctx, b: b._replace(rows=0)), "'own' must state rows >= 1, got 0"),
    (lambda: bounded(lambda ctx, b: b._replace(l1=math.nan)), "'own' must state l1 >= 0, got nan"),
    (
      lambda: compose(Layer('own', client=Stage(lambda *x: x, facts=Looks('nothing')))),
      "'own' must be a tuple of facts",
    ),
  ],
)
def test_what_is_no_bound_or_no_fact(made, words):
  with pytest.raises(ValueError, match=words):
    made()


def bounded(of):
  """Returns the bounds along a layer with one cohort side."""
  return list(Round([Layer('own', cohort=Stage(lambda *x: x, facts=(Bounds(of),)))]).bounds({}))
