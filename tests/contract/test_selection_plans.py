"""Selection by data under a claim of privacy is refused; what happens to clients anyway is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import Draws, IncompatibleStages, Looks, Prepares, compose
from fedjax_mem.engine import simulate
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import (
  contribution,
  diurnal,
  dropout,
  importance,
  markov,
  oort,
  poisson,
  power_of_choice,
  round_robin,
  stragglers,
  uniform,
)
from fedjax_mem.stages.weigh import equal

loss = lambda params, batch, key=None: batch['a'].sum(1)
HELD = {'a': np.ones((3, 4), np.float32)}
BY_DATA = {
  'importance': lambda: importance(9, 3),
  'importance by loss': lambda: importance(9, 3, by='loss', loss=loss),
  'power_of_choice': lambda: (power_of_choice(9, 3, loss),),
  'oort': lambda: (oort(9, 3, loss),),
  'shapley': lambda: (contribution(9, 3, loss, HELD),),
  'gtg': lambda: (contribution(9, 3, loss, HELD, method='gtg'),),
  'leave_one_out': lambda: (contribution(9, 3, loss, HELD, method='leave_one_out'),),
  'importance, away': lambda: (*importance(9, 3), markov(9)),
  'oort, late': lambda: (oort(9, 3, loss), stragglers(9, [1.0] * 9)),
}
NOISE = {
  'central': lambda: privacy.central(0.5, 1.0),
  'local': lambda: privacy.local(0.5, 1.0),
  'tree': lambda: privacy.tree(0.5, 1.0, 1),
}


def plan(chosen, *noise):
  tasks = [x for x in chosen if x.fact(Prepares) is not None]
  rest = [x for x in chosen if x.fact(Prepares) is None]
  layers = compose(*tasks, given.algorithm(), equal(3.0), *rest, *noise)
  pop = given.population({'a': np.ones((9, 4), np.float32)})
  return simulate(layers, {'a': jnp.zeros(4)}, pop, execution=tiny.MODES['vmap'])


@pytest.mark.slow
@pytest.mark.parametrize('noise', NOISE)
@pytest.mark.parametrize('name', BY_DATA)
def test_selection_by_data_is_refused_under_privacy(name, noise):
  plan(BY_DATA[name]())  # without a claim it may
  with pytest.raises(IncompatibleStages, match=r"'select' selects .* looks at others' data"):
    plan(BY_DATA[name](), NOISE[noise]())


@pytest.mark.parametrize('name', BY_DATA)
def test_they_say_that_they_look_at_data(name):
  chooser = next(x for x in BY_DATA[name]() if x.fact(Draws) is not None)
  assert chooser.fact(Looks).at == "others' data"


@pytest.mark.slow
@pytest.mark.parametrize('inner', (lambda: uniform(9, 3), lambda: poisson(9, 0.3)))
def test_clients_that_are_away_or_late_are_no_data(inner):
  public = stragglers(9, [1.0] * 9, deadline=2.0, looks='nothing')
  own = stragglers(9, [1.0] * 9, deadline=2.0, looks='own data')
  for layer in (diurnal(9), markov(9), dropout(0.1), public, own):
    plan((inner(), layer), privacy.central(0.5, 1.0))


def test_who_is_late_by_the_data_of_others_is_refused():
  late = stragglers(9, [1.0] * 9, deadline=2.0)
  plan((uniform(9, 3), late))
  with pytest.raises(IncompatibleStages, match="'deadline' selects clients and looks at others'"):
    plan((uniform(9, 3), late), privacy.central(0.5, 1.0))
  # Nobody is left out without a deadline.
  plan((uniform(9, 3), stragglers(9, [1.0] * 9)), privacy.central(0.5, 1.0))


def test_a_layer_that_does_not_state_what_it_looks_at_is_refused_under_privacy():
  silent = dropout(0.1)
  silent = silent._replace(select=silent.select._replace(facts=()))
  plan((uniform(9, 3), silent))
  with pytest.raises(IncompatibleStages, match=r"'dropout'.*does not state what"):
    plan((uniform(9, 3), silent), privacy.central(0.5, 1.0))


def test_a_filter_before_the_draw_changes_its_probabilities():
  first = lambda inner: (markov(9, before_draw=True), inner)
  for inner in (uniform(9, 3), poisson(9, 0.3)):
    plan(first(inner))
  plan(first(poisson(9, 0.3)), privacy.central(0.5, 1.0))
  with pytest.raises(IncompatibleStages, match="'available' comes before the draw"):
    plan(first(uniform(9, 3)), privacy.central(0.5, 1.0))
  with pytest.raises(IncompatibleStages, match='leaves some out'):
    plan(first(round_robin(9, 3)))
  with pytest.raises(IncompatibleStages, match="'available' must come before the layer that draws"):
    plan((uniform(9, 3), markov(9, before_draw=True)))
  with pytest.raises(IncompatibleStages, match="'dropout' must come after the layer that draws"):
    plan((dropout(0.1), uniform(9, 3)))
