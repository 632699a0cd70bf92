"""Selection by data under a claim of privacy is refused; what happens to clients anyway is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import IncompatibleStages, onion
from fedjax_mem.engine import simulate
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import (
  contribution,
  diurnal,
  importance,
  markov,
  oort,
  poisson,
  power_of_choice,
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
  'importance, away': lambda: tuple(markov(x) for x in importance(9, 3)),
  'oort, late': lambda: (stragglers(oort(9, 3, loss), [1.0] * 9),),
}
NOISE = {
  'central': lambda: privacy.central(0.5, 1.0),
  'local': lambda: privacy.local(0.5, 1.0),
  'tree': lambda: privacy.tree(0.5, 1.0, 1),
}


def plan(chosen, *noise):
  kinds = {kind: [x for x in chosen if x.traits.kind == kind] for kind in ('task', 'select')}
  late = [x for x in chosen if x.traits.kind == 'message']
  layers = onion(*kinds['task'], given.algorithm(), *kinds['select'], equal(3.0), *late, *noise)
  pop = given.population({'a': np.ones((9, 4), np.float32)})
  return simulate(layers, {'a': jnp.zeros(4)}, pop, execution=tiny.MODES['vmap'])


@pytest.mark.slow
@pytest.mark.parametrize('noise', NOISE)
@pytest.mark.parametrize('name', BY_DATA)
def test_selection_by_data_is_refused_under_privacy(name, noise):
  plan(BY_DATA[name]())  # without a claim it may
  with pytest.raises(IncompatibleStages, match="'select' selects clients by what they report"):
    plan(BY_DATA[name](), NOISE[noise]())


@pytest.mark.parametrize('name', BY_DATA)
def test_they_say_that_they_look_at_data(name):
  chooser = next(x for x in BY_DATA[name]() if x.select is not None)
  assert chooser.select.sampling.scheme == 'data_dependent'


@pytest.mark.slow
@pytest.mark.parametrize('inner', (lambda: uniform(9, 3), lambda: poisson(9, 0.3)))
def test_clients_that_are_away_or_late_are_no_data(inner):
  for wrap in (diurnal, markov, lambda x: stragglers(x, [1.0] * 9, deadline=2.0)):
    layer = wrap(inner())
    plan((layer,), privacy.central(0.5, 1.0))
    assert layer.select.sampling == inner().select.sampling
