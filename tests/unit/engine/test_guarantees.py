"""Plans that would break a claim of privacy are refused, naming both layers and the remedy."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, stages

from fedjax_mem.core import (
  Bound,
  IncompatibleStages,
  Layer,
  Message,
  Sampling,
  Stage,
  Traits,
  onion,
)
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.engine import guarantees, simulate
from fedjax_mem.stages import privacy
from fedjax_mem.stages.algorithm import dp_sgd
from fedjax_mem.stages.select import dropout, min_separation, poisson, round_robin, uniform
from fedjax_mem.stages.weigh import by_examples, capped, equal

C, Z = 0.5, 1.0
UPDATES = {'a': np.ones((9, 4), np.float32)}
GAUSSIAN = Mechanism('gaussian', 1.0)


def build(*layers, select=None, weigh=None, algorithm=None):
  """Plans a round; nothing is compiled."""
  select = uniform(9, 3) if select is None else select
  weigh = equal(3.0) if weigh is None else weigh
  algorithm = given.algorithm() if algorithm is None else algorithm
  params, pop = {'a': jnp.zeros(4)}, given.population(UPDATES)
  return simulate(onion(algorithm, select, weigh, *layers), params, pop)


def refused(*names, layers=(), **kwargs):
  """Fails unless the plan is refused with a message that holds all of `names`."""
  with pytest.raises(IncompatibleStages) as caught:
    build(*layers, **kwargs)
  for name in names:
    assert name in str(caught.value), (name, str(caught.value))


def noise_layer(name='noise', sensitivity=None, mechanism=GAUSSIAN, **kwargs):
  given_ = {} if sensitivity is None else {'sensitivity': sensitivity}
  return Layer(name, traits=Traits(mechanism=mechanism), **given_, **kwargs)


def clip_layer():
  return Layer('clip', sensitivity=lambda b: Bound(l2=C))


SOUND = {
  'central': [privacy.central(C, Z)],
  'laplace': [privacy.laplace(C, Z)],
  'discrete': [privacy.central(C, Z, mechanism='discrete_gaussian')],
  'local': [privacy.local(C, Z)],
  'clip, then noise of one own': [clip_layer(), noise_layer()],
  'a codec that states what it adds': [
    privacy.central(C, Z),
    Layer('encode', sensitivity=lambda b: Bound(l2=b.l2 + 0.1)),
  ],
  'a codec before the clip': [
    Layer('encode', sensitivity=lambda b: Bound()),
    privacy.central(C, Z),
  ],
  'two gaussian ones': [privacy.central(C, Z), privacy.adaptive_clip(Z, 60.0)],
  'two gaussian ones, the other way': [privacy.adaptive_clip(Z, 60.0), privacy.central(C, Z)],
  'a robust rule on local noise': [privacy.local(C, Z), stages.median()],
  'a row-wise stack that says so': [
    Layer('attack', stacked=True, sensitivity=lambda b: b),
    privacy.central(C, Z),
  ],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SOUND)
def test_sound_plans_are_taken(name):
  build(*SOUND[name])


@pytest.mark.first(1)
@pytest.mark.parametrize(
  'select', [poisson(9, 0.3), dropout(uniform(9, 3), 0.2), round_robin(9, 3)]
)
def test_samplers_that_do_not_look_at_data_are_taken(select):
  build(privacy.central(C, Z), select=select)


def test_capped_weights_with_a_fixed_divisor_are_taken():
  build(privacy.central(C, Z), weigh=capped(3.0, 3.0))
  build(privacy.local(C, Z), weigh=equal())


def test_noise_without_a_bound():
  refused("'noise'", "'algorithm'", 'clip first', layers=[noise_layer()])
  refused("'noise'", 'L1', layers=[clip_layer(), noise_layer(mechanism=Mechanism('laplace', 1.0))])


def test_a_layer_between_clip_and_noise_that_breaks_the_bound():
  breaks = Layer('encode', sensitivity=lambda b: Bound(linf=b.linf))
  refused("'encode'", "'noise'", 'before the clip', layers=[clip_layer(), breaks, noise_layer()])


@pytest.mark.parametrize('layer', [privacy.central(C, Z), privacy.adaptive_clip(Z, 60.0)])
def test_a_layer_after_the_noise_that_breaks_the_bound(layer):
  breaks = Layer('encode', sensitivity=lambda b: Bound())
  refused("'encode'", repr(layer.name), 'L2', layers=[layer, breaks])
  refused("'robust'", repr(layer.name), layers=[layer, stages.median()])
  sparse = Layer('sparse', traits=Traits(adds=False))
  refused("'sparse'", repr(layer.name), 'does not add', layers=[layer, sparse])


def test_noise_that_cannot_be_told_must_not_be_outgrown():
  wider = Layer('encode', sensitivity=lambda b: Bound(l2=2 * b.l2))
  own = noise_layer(sensitivity=lambda b: Bound(l2=C))
  refused("'encode'", "'noise'", 'enlarges', layers=[own, wider])
  discrete = privacy.central(C, Z, mechanism='discrete_gaussian')
  refused("'encode'", "'central'", 'enlarges', layers=[discrete, wider])


@pytest.mark.parametrize(
  'layer', [privacy.central(C, Z), privacy.local(C, Z), privacy.adaptive_clip(Z, 60.0)]
)
def test_weights_by_examples(layer):
  refused(repr(layer.name), "'weigh'", "'equal' or 'capped'", layers=[layer], weigh=by_examples())


def test_a_divisor_that_clients_change():
  refused(
    "'central'", "'weigh'", 'fixed divisor', '(3)', layers=[privacy.central(C, Z)], weigh=equal()
  )
  refused("'central'", 'fixed divisor', layers=[privacy.central(C, Z)], weigh=capped(3.0))
  refused("'local'", 'fixed divisor', layers=[privacy.local(C, Z)], weigh=capped(3.0))


def test_noise_before_the_weighing():
  layers = onion(given.algorithm(), uniform(9, 3), privacy.central(C, Z), equal(3.0))
  with pytest.raises(IncompatibleStages, match="'central' must come after 'weigh'"):
    guarantees.bind(layers)


def test_data_dependent_selection():
  select = stages.importance(9, 3, 5)
  refused(
    "'central'", "'select'", 'does not look at data', layers=[privacy.central(C, Z)], select=select
  )
  # It says that it is Poisson, but keeps a table that its client half writes.
  says = select._replace(select=select.select._replace(sampling=Sampling('poisson', 9, 3, 5)))
  refused("'local'", "'select'", layers=[privacy.local(C, Z)], select=says)


def test_mechanisms_whose_composition_is_not_stated():
  layers = [privacy.laplace(C, Z), privacy.central(C, Z)]
  refused("'laplace'", "'central'", 'remove one', layers=layers)
  refused("'local'", "'local_laplace'", layers=[privacy.local(C, Z), privacy.local_laplace(C, Z)])


@pytest.mark.slow
def test_correlated_noise_without_the_separation_it_assumes():
  tree, matrix = privacy.tree(C, Z, 3), privacy.matrix_factorization(C, Z, 8, separation=3, bands=1)
  for layer in (tree, matrix):
    build(layer, select=min_separation(9, 3, 3))
    build(layer, select=round_robin(9, 3))
    refused(
      repr(layer.name), "'select'", '3 rounds', layers=[layer], select=min_separation(9, 3, 2)
    )
    refused(repr(layer.name), "'select'", 'min_separation', layers=[layer], select=poisson(9, 0.3))


def test_updates_that_depend_on_each_other_before_the_clip():
  for layer in (privacy.central(C, Z), privacy.local(C, Z)):
    refused(repr(layer.name), "'robust'", 'messages of others', layers=[stages.krum(0), layer])
  mixes = Layer('mix', stacked=True, sensitivity=lambda b: Bound())
  refused("'central'", "'mix'", layers=[mixes, privacy.central(C, Z)])


def test_integers_before_the_clip():
  layers = [stages.fixed_point(8), privacy.central(C, Z)]
  refused("'central'", "'encode'", 'floats', layers=layers)


def adds_aux(name='extra'):
  client = lambda ctx, m, s: (m._replace(aux={**m.aux, 'seen': m.weight}), s, {})
  server = lambda ctx, m, s: (
    Message(m.payload, m.weight, {k: v for k, v in m.aux.items() if k != 'seen'}),
    s,
    {},
  )
  return Layer(name, Stage(client), Stage(server))


def test_sums_beside_the_noise():
  for layer in (privacy.central(C, Z), privacy.local(C, Z)):
    refused(repr(layer.name), "'extra'", "'seen'", layers=[adds_aux(), layer])
  refused("'central'", "'extra'", "'seen'", layers=[privacy.central(C, Z), adds_aux()])
  both = [privacy.central(C, Z), adds_aux(), Layer('nothing')]
  refused("'central'", "'extra'", "'seen'", layers=both)
  build(privacy.local(C, Z), adds_aux())


def test_a_server_state_made_of_the_sum_before_the_noise():
  keeps = Layer('low_rank', server=Stage(init=lambda ctx: jnp.float32(0)))
  refused("'central'", "'low_rank'", 'before the noise', layers=[privacy.central(C, Z), keeps])
  build(keeps, privacy.central(C, Z))


@pytest.mark.slow
def test_noise_by_example_needs_equal_weights():
  layer = dp_sgd(
    lambda p, b, k: (b['a'] * p['a'][None]).sum(-1),
    learning_rate=0.1,
    batch_size=1,
    steps=1,
    rate=1.0,
    l2_clip_norm=C,
    noise_multiplier=Z,
  )
  build(algorithm=layer, weigh=equal())
  build(privacy.central(C, Z), algorithm=layer, weigh=equal(3.0))
  for weigh in (by_examples(), capped(3.0, 3.0)):
    refused("'algorithm'", "'weigh'", "'equal'", algorithm=layer, weigh=weigh)


def test_a_plan_without_noise_is_left_alone():
  layers = onion(given.algorithm(), uniform(9, 3), by_examples(), stages.median())
  assert guarantees.bind(layers) is layers
  clip_only = onion(given.algorithm(), uniform(9, 3), by_examples(), privacy.central(C, 0.0))
  assert guarantees.bind(clip_only) is clip_only


def test_layers_are_told_what_becomes_of_their_bound():
  wider = Layer('encode', sensitivity=lambda b: Bound(l2=b.l2 + 0.25))
  layers = guarantees.bind(
    onion(
      given.algorithm(),
      uniform(9, 3),
      equal(3.0),
      privacy.central(C, Z),
      wider,
      wider._replace(name='more'),
    )
  )
  assert layers[3].server.apply.outside(Bound(l2=C)).l2 == C + 0.5
