"""What an onion accepts, and what composes over its layers."""

import pytest
from reference import tiny

from fedjax_mem.core import Bound, IncompatibleStages, Layer, Traits, onion, selector, sensitivity
from fedjax_mem.stages.weigh import by_examples, equal


def test_layers_and_tuples_are_flattened_in_order():
  pair = (Layer('one'), Layer('two'))
  names = [x.name for x in onion(tiny.algorithm(), tiny.rota(), pair, Layer('three'))]
  assert names == ['algorithm', 'select', 'one', 'two', 'three']


@pytest.mark.parametrize(
  'parts, message',
  [
    ((tiny.rota(), equal()), r'exactly one layer must be the algorithm, got \[\]'),
    ((tiny.algorithm(), equal()), r'exactly one layer must select the cohort, got \[\]'),
    ((tiny.algorithm(), tiny.rota(), equal(), equal()), 'distinct, got .*weigh.*weigh'),
    (
      (tiny.algorithm(), tiny.rota()._replace(name='a'), tiny.rota()),
      r"select the cohort, got \['a', 'select'\]",
    ),
  ],
)
def test_what_is_not_a_round_is_refused(parts, message):
  with pytest.raises(IncompatibleStages, match=message):
    onion(*parts)


def test_what_is_not_a_layer_is_refused_and_shown():
  with pytest.raises(ValueError, match='must be a Layer, got 3'):
    onion(tiny.algorithm(), (3,))


def test_the_selector_is_found_by_name():
  name, sampler = selector(tiny.layers())
  assert name == 'select' and sampler.sampling.population == tiny.N


def test_bounds_compose_outward_up_to_a_layer():
  clip = Layer('clip', sensitivity=lambda b: Bound(l2=2.0))
  double = Layer('double', sensitivity=lambda b: Bound(l2=2 * b.l2), traits=Traits())
  layers = onion(tiny.algorithm(), tiny.rota(), equal(), clip, double)
  assert sensitivity(layers, 'weigh') == Bound()
  assert sensitivity(layers, 'clip').l2 == 2 and sensitivity(layers).l2 == 4
  assert sensitivity(onion(tiny.algorithm(), tiny.rota(), clip, by_examples())) == Bound()
