"""Plans that would break a claim of privacy are refused, naming both layers and the remedy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, stages

from fedjax_mem.core import (
  IN_ROUND,
  Attacks,
  Bound,
  Bounds,
  Draws,
  IncompatibleStages,
  Integers,
  Layer,
  Looks,
  Message,
  Noises,
  Prepares,
  Stage,
  Weighs,
  Withholds,
  compose,
  rounding,
  tree,
  wire,
)
from fedjax_mem.engine import checks, simulate
from fedjax_mem.mechanisms import Gaussian, Laplace
from fedjax_mem.stages import privacy
from fedjax_mem.stages.algorithm import dp_sgd
from fedjax_mem.stages.compress import _base as codec
from fedjax_mem.stages.compress import random_k
from fedjax_mem.stages.masks import mask
from fedjax_mem.stages.privacy import _base as kit
from fedjax_mem.stages.select import (
  dropout,
  markov,
  min_separation,
  poisson,
  round_robin,
  stragglers,
  uniform,
)
from fedjax_mem.stages.weigh import by_examples, capped, equal

C, Z = 0.5, 1.0
UPDATES = {'a': np.ones((9, 4), np.float32)}
GAUSSIAN = Gaussian(1.0)
PASSES = Stage(lambda ctx, value, state: (value, state, {}))
IN_THE_ROUND = (Bounds(lambda ctx, b: Bound(l1=IN_ROUND, l2=IN_ROUND)),)


def build(*layers, select=None, weigh=None, algorithm=None):
  """Plans a round; nothing is compiled."""
  select = uniform(9, 3) if select is None else select
  weigh = equal(3.0) if weigh is None else weigh
  algorithm = given.algorithm() if algorithm is None else algorithm
  params, pop = {'a': jnp.zeros(4)}, given.population(UPDATES)
  return simulate(compose(algorithm, select, weigh, *layers), params, pop)


def refused(*names, layers=(), **kwargs):
  """Fails unless the plan is refused with a message that holds all of `names`."""
  with pytest.raises(IncompatibleStages) as caught:
    build(*layers, **kwargs)
  for name in names:
    assert name in str(caught.value), (name, str(caught.value))


def noise_layer(name='noise', mechanism=GAUSSIAN):
  return Layer(name, server=PASSES._replace(facts=(Noises(mechanism),)))


def bounding(name, of, side='client'):
  return Layer(name, **{side: PASSES._replace(facts=(Bounds(of),))})


def clip_layer():
  return bounding('clip', lambda ctx, b: Bound(l2=C))


def times(factor, *facts):
  """Returns a side that multiplies the update."""
  apply = lambda ctx, m, s: (m._replace(update=tree.scale(factor, m.update)), s, {})
  return Stage(apply, facts=facts)


SOUND = {
  'central': [privacy.central(C, Z)],
  'laplace': [privacy.laplace(C, Z)],
  'discrete': [privacy.central(C, Z, mechanism='discrete_gaussian')],
  'local': [privacy.local(C, Z)],
  'clip, then noise of one own': [clip_layer(), noise_layer()],
  'a codec that states what it adds': [
    privacy.central(C, Z),
    bounding('encode', lambda ctx, b: Bound(l2=b.l2 + 0.1)),
  ],
  'a codec before the clip': [
    Layer('encode', client=PASSES),
    privacy.central(C, Z),
  ],
  'a row-wise stack that says so': [
    bounding('attack', lambda ctx, b: b, 'cohort'),
    privacy.central(C, Z),
  ],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SOUND)
def test_sound_plans_are_taken(name):
  build(*SOUND[name])


def test_a_rule_on_local_noise_is_taken_where_nothing_divides_it_by_a_fixed_number():
  layers = [privacy.local(C, Z), stages.median()]
  build(*layers, weigh=equal())
  refused("'robust'", "'weigh'", 'without a fixed divisor', layers=layers)


@pytest.mark.first(1)
@pytest.mark.parametrize(
  'select', [poisson(9, 0.3), (uniform(9, 3), dropout(0.2)), round_robin(9, 3)]
)
def test_samplers_that_do_not_look_at_data_are_taken(select):
  build(privacy.central(C, Z), select=select)


def test_capped_weights_with_a_fixed_divisor_are_taken():
  build(privacy.central(C, Z), weigh=capped(3.0, 3.0))
  build(privacy.local(C, Z), weigh=equal())


def test_noise_without_a_bound():
  refused("'noise'", "'algorithm'", 'clip first', layers=[noise_layer()])
  refused("'noise'", 'L1', layers=[clip_layer(), noise_layer(mechanism=Laplace(1.0))])


def test_a_layer_between_clip_and_noise_that_breaks_the_bound():
  breaks = bounding('encode', lambda ctx, b: Bound(linf=b.linf))
  refused("'encode'", "'noise'", 'before the clip', layers=[clip_layer(), breaks, noise_layer()])


@pytest.mark.parametrize('layer', [privacy.central(C, Z), privacy.adaptive_clip(Z, 60.0)])
def test_a_layer_after_the_noise_that_breaks_the_bound(layer):
  breaks = bounding('encode', lambda ctx, b: Bound())
  refused("'encode'", repr(layer.name), 'L2', layers=[layer, breaks])
  refused("'robust'", repr(layer.name), layers=[layer, stages.median()])


def shared(ctx, stack, state):
  """Copies one client's message to all rows."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), stack), state, {}


CODEC = random_k(0.5, unbiased=False)


def decodes(ctx, message, state):
  message, state, metrics = CODEC.server.apply(ctx, message, state)
  return message._replace(update=tree.scale(10.0, message.update)), state, metrics


UNSTATED = {
  'a client side x 10': Layer('own', client=times(10.0)),
  'a server side x 10': Layer('own', server=times(10.0)),
  'a sum scaled to a norm': Layer(
    'own',
    server=Stage(
      lambda ctx, m, s: (
        m._replace(update=tree.scale(1000 / tree.norm(m.update), m.update)),
        s,
        {},
      )
    ),
  ),
  'a cohort side that mixes': Layer('own', cohort=Stage(shared)),
  'a codec that decodes x 10': CODEC._replace(name='own', server=Stage(decodes)),
}


@pytest.mark.parametrize('name', UNSTATED)
def test_after_the_noise_a_side_without_a_stated_bound_is_refused(name):
  for noise in (privacy.central(C, Z), privacy.laplace(C, Z), privacy.tree(C, Z, 1)):
    refused("'own'", repr(noise.name), 'states no bound', layers=[noise, UNSTATED[name]])
  build(UNSTATED[name], weigh=equal())  # without a claim it may


def test_a_side_that_mixes_before_the_clip_is_refused_and_no_bound_of_one_message_helps():
  mixes = Layer('own', cohort=Stage(shared))
  refused("'own'", "'central'", 'messages of others', layers=[mixes, privacy.central(C, Z)])
  says = Bounds(lambda ctx, bound: Bound(l2=C, rows=9))
  stated = Layer('own', cohort=Stage(shared, facts=(says,)))
  made = compose(given.algorithm(), uniform(9, 3), equal(3.0), stated, privacy.central(C, Z))
  # What nine messages can move, each from one place in the ball to another.
  assert made.bound(made[-1], 'server', {}).l2 == pytest.approx(2 * 9 * C)


def test_a_server_side_that_was_replaced_makes_no_claim():
  noise = privacy.central(C, Z)
  silent = noise._replace(server=Stage(noise.server.apply))
  made = compose(given.algorithm(), uniform(9, 3), by_examples(), silent)
  assert made.having(Noises) == ()
  wrapped = noise._replace(server=Stage(noise.server.apply, facts=noise.server.facts))
  assert len(compose(given.algorithm(), uniform(9, 3), equal(3.0), wrapped).having(Noises)) == 1


@pytest.mark.parametrize('asked', ['arrived', 'real', 'id', 'chance', '_replace'])
def test_what_stands_after_the_noise_is_not_given_the_cohort(asked):
  def asks(ctx, message, state):
    getattr(ctx.cohort, asked)
    return message, state, {}

  peeks = Layer('peeks', server=Stage(asks))
  refused("'peeks'", repr(asked), "'central'", 'cover', layers=[peeks, privacy.central(C, Z)])
  build(peeks)
  build(peeks, privacy.local(C, Z))


@pytest.mark.slow
def test_what_stands_after_the_noise_is_given_the_divisor_for_the_weight():
  seen = lambda ctx, m, s: (m, s, {'weight': m.weight})
  sim = build(Layer('peeks', server=Stage(seen)), privacy.central(C, Z), select=uniform(9, 2))
  _, metrics = sim.run(sim.init({'a': jnp.zeros(4)}), 2)
  assert metrics['peeks/weight'].tolist() == [3.0, 3.0]  # and not the two that arrived


def test_noise_for_integers_meets_integers_and_noise_for_floats_meets_floats():
  floats, whole = privacy.central(C, Z), privacy.central(C, Z, mechanism='discrete_gaussian')
  refused("'central'", 'noise for floats', layers=[floats._replace(client=whole.client)])
  refused("'central'", 'noise for integers', layers=[whole._replace(client=floats.client)])


@pytest.mark.parametrize(
  ('name', 'layer'),
  [
    ('central', privacy.central(C, Z)),
    ('local', privacy.local(C, Z)),
    ('adaptive_clip', privacy.adaptive_clip(Z, 60.0)),
  ],
)
def test_weights_by_examples(name, layer):
  refused(repr(name), "'weigh'", 'weigh', 'equal', layers=[layer], weigh=by_examples(3.0))


def test_weights_that_state_no_cap():
  free = equal(3.0)
  free = free._replace(client=free.client._replace(facts=(free.fact(Weighs),)))
  refused("'central'", "'weigh'", 'no public cap', layers=[privacy.central(C, Z)], weigh=free)


def test_a_divisor_that_clients_change():
  refused(
    "'central'", "'weigh'", 'fixed divisor', '(3)', layers=[privacy.central(C, Z)], weigh=equal()
  )
  refused("'central'", 'fixed divisor', layers=[privacy.central(C, Z)], weigh=capped(3.0))
  refused("'local'", 'all alike', layers=[privacy.local(C, Z)], weigh=capped(3.0, divisor=3.0))


def test_noise_before_the_weighing():
  layers = compose(given.algorithm(), uniform(9, 3), privacy.central(C, Z), equal(3.0))
  with pytest.raises(IncompatibleStages, match="'central' must come after 'weigh'"):
    checks.composed(layers)


def test_data_dependent_selection():
  select = stages.importance(9, 3, 5)
  refused(
    "'central'", "'select'", 'does not look at data', layers=[privacy.central(C, Z)], select=select
  )
  # It says that it is Poisson, but keeps a table that its client side writes.
  facts = Draws('poisson', 9, 3, 5), Looks('nothing')
  says = select._replace(select=select.select._replace(facts=facts))
  refused("'local'", "'select'", layers=[privacy.local(C, Z)], select=says)


def test_mechanisms_whose_composition_is_not_stated():
  layers = [privacy.laplace(C, Z), privacy.central(C, Z)]
  refused("'laplace'", "'central'", 'remove one', layers=layers)
  two = [privacy.central(C, Z), privacy.adaptive_clip(Z, 60.0)]
  refused("'central'", "'adaptive_clip'", 'remove one', layers=two)
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
  for name, layer in (('central', privacy.central(C, Z)), ('local', privacy.local(C, Z))):
    refused(repr(name), "'robust'", 'messages of others', layers=[stages.krum(0), layer])
  mixes = bounding('mix', lambda ctx, b: Bound(), 'cohort')
  refused("'central'", "'mix'", layers=[mixes, privacy.central(C, Z)])


def test_integers_before_the_clip():
  layers = [stages.fixed_point(8), privacy.central(C, Z)]
  refused("'central'", "'encode'", 'floats', layers=layers)


def adds_aux(name='extra'):
  client = lambda ctx, m, s: (m._replace(aux={**m.aux, 'seen': m.weight}), s, {})
  server = lambda ctx, m, s: (
    Message(m.update, m.weight, {k: v for k, v in m.aux.items() if k != 'seen'}),
    s,
    {},
  )
  kept = (Bounds(lambda ctx, bound: bound),)
  return Layer(name, client=Stage(client, facts=kept), server=Stage(server, facts=kept))


def test_sums_beside_the_noise():
  for name, layer in (('central', privacy.central(C, Z)), ('local', privacy.local(C, Z))):
    refused(repr(name), "'extra'", "'seen'", layers=[adds_aux(), layer])
  refused("'central'", "'extra'", "'seen'", layers=[privacy.central(C, Z), adds_aux()])
  both = [privacy.central(C, Z), adds_aux(), Layer('nothing')]
  refused("'central'", "'extra'", "'seen'", layers=both)
  build(privacy.local(C, Z), adds_aux())


def test_a_server_state_made_of_the_sum_before_the_noise():
  kept = (Bounds(lambda ctx, bound: bound),)
  keeps = Layer('low_rank', server=PASSES._replace(init=lambda ctx: jnp.float32(0), facts=kept))
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
    refused("'algorithm'", "'weigh'", 'by equal', algorithm=layer, weigh=weigh)


def test_integer_noise_is_drawn_for_the_grid_that_reaches_it():
  coarse, fine = (
    privacy.central(C, Z, mechanism='discrete_gaussian', levels=levels) for levels in (256, 1024)
  )
  wider = bounding('wider', lambda ctx, b: b.scaled(2))
  rows = bounding('rows', lambda ctx, b: b._replace(rows=3), 'cohort')
  for layers, wanted in (
    ([coarse], 256),
    ([coarse._replace(client=fine.client)], 1024),
    ([fine, wider], 2048),
    ([rows, coarse], 2 * 3 * 256),
  ):
    made = build(*layers).setting.layers
    noisy = next(x for x in made if x.name == 'central')
    assert made.bound(noisy, 'server', {}).l2 == wanted


def shares():
  return privacy.distributed(C, Z, shares=2, clients=3, dimension=4, bits=20)


MASK = mask(clients=3, bits=20)


@pytest.mark.slow
def test_noise_of_a_client_covers_its_own_message_only():
  # Clients that collude may, under a mask as well.
  facts = (Bounds(lambda ctx, b: b._replace(rows=3)), Attacks())
  rows = Layer('rows', cohort=PASSES._replace(facts=facts))
  for noise in ([privacy.local(C, Z)], [*shares(), MASK], [privacy.adaptive_clip(Z, 60.0)]):
    build(*noise)
    refused("'rows'", 'messages of others', layers=[rows, *noise])


def test_a_share_of_noise_without_a_mask():
  refused("'integer_noise'", 'put a mask right after it', layers=[*shares()])
  late = uniform(9, 3), dropout(0.1)  # selects before all else, wherever it is listed
  build(*shares(), late[1], MASK)


def test_a_share_of_noise_that_may_be_released_by_too_few():
  *first, last = shares()
  facts = last.client.facts
  for stated in ((), (Withholds(1),)):
    kept = tuple(x for x in facts if not isinstance(x, Withholds))
    less = last._replace(client=last.client._replace(facts=(*kept, *stated)))
    refused("'integer_noise'", 'state Withholds(2)', layers=[*first, less, MASK])
  drawn = Noises(Gaussian(1.0))  # at once, by one client
  odd = last._replace(client=last.client._replace(facts=(drawn, *facts[1:])))
  refused("'integer_noise'", 'do not bring it in shares', layers=[*first, odd, MASK])


def test_noise_by_client_is_on_messages_and_noise_by_example_in_training():
  by_example = Noises(Gaussian(1.0), 'local', 'example', lambda n: Draws('poisson', n, 1, n))
  late = Layer('own', client=PASSES._replace(facts=(by_example,)))
  refused("'own'", 'noise by example', 'inside of, or before', layers=[late])
  trains = given.algorithm()
  by_client = Noises(Gaussian(1.0), 'local')
  facts = (*trains.client.facts, by_client)
  inside = trains._replace(client=trains.client._replace(facts=facts))
  refused("'algorithm'", 'noise by client', 'must stand after', algorithm=inside)
  posing = Layer('own', server=PASSES._replace(facts=(by_client,)))
  refused("'own'", 'calls local', layers=[clip_layer(), posing])
  stepping = trains._replace(server=trains.server._replace(facts=(Noises(Gaussian(1.0)),)))
  refused("'algorithm'", 'must stand after', algorithm=stepping)


def test_central_noise_is_one_release_by_client():
  for wrong in ({'steps': 5}, {'unit': 'example', 'draws': lambda n: None}):
    with pytest.raises(ValueError, match=r'steps must be 1'):
      Noises(Gaussian(1.0), **wrong)


def test_discrete_noise_has_room_for_its_cohort():
  discrete = privacy.central(C, Z, mechanism='discrete_gaussian', levels=2**14)
  layers = lambda size: compose(
    given.algorithm(), uniform(200_000, size), equal(float(size)), discrete
  )
  checks.composed(layers(131_071))
  with pytest.raises(IncompatibleStages, match='room for the sum of 131071 clients in 32 bits'):
    checks.composed(layers(131_072))


def test_what_is_summed_beside_is_bounded_for_one_message():
  rows = bounding('rows', lambda ctx, b: b._replace(rows=3), 'cohort')
  client = lambda ctx, m, s: (m._replace(aux={**m.aux, 'count': m.weight}), s, {})
  server = lambda ctx, m, s: (m._replace(aux={}), s, {})
  fixed = Stage(client, facts=(Bounds(lambda ctx, b: Bound(l2=C)),))
  both = Layer('both', client=fixed, server=Stage(server, facts=(Noises(Gaussian(1.0)),)))
  build(both)
  refused("'rows'", "'both'", 'messages of others', layers=[rows, both])
  build(rows, privacy.central(C, Z))  # scaled to what it may change


def test_clips_without_noise_state_the_bound_that_they_leave():
  """Noise of somebody else's after them is scaled to it."""
  noise = noise_layer()
  for make in (privacy.local, privacy.local_discrete):
    made = build(*make(10.0, 0.0), noise).setting.layers
    told = made.bound(made[-1], 'server', {}).l2
    assert told == 10.0 * (1 + rounding(made.draws.capacity))


def test_more_values_than_the_noise_is_accounted_for():
  make = lambda d: privacy.central(C, Z, mechanism='skellam', levels=4, dimension=d)
  build(make(4))
  with pytest.raises(ValueError, match='dimension must be at least the 4 values that are noised'):
    build(make(3))


@pytest.mark.slow
def test_a_matrix_that_is_not_the_one_accounted():
  known = privacy.matrix_factorization(C, Z, 4, separation=2, bands=2)
  made = known.fact(Noises).mechanism
  build(known, select=min_separation(9, 3, 2))
  for wrong, words in (
    ({'sensitivities': (1.0,) * 4}, 'sensitivities must be those of the'),
    ({'width': 3}, 'width must be at most the separation'),
  ):
    other = kit.release(dataclasses.replace(made, **wrong))
    with pytest.raises(ValueError, match=words):
      build(known._replace(server=other), select=min_separation(9, 3, 2))


@pytest.mark.slow
def test_local_noise_does_not_leave_a_weight_in_the_clear():
  tells = lambda ctx, m, s: (m._replace(weight=jnp.abs(m.update['a']).sum()), s, {})
  kept = Stage(tells, facts=(Bounds(lambda ctx, b: b),))
  sim = build(Layer('tells', client=kept), *privacy.local(C, Z), weigh=equal())
  sums = []

  def seen(ctx, m, s):
    sums.append(1)
    return m, s, {'weight': m.weight}

  sim = build(
    Layer('tells', client=kept), *privacy.local(C, Z), Layer('seen', server=Stage(seen)),
    weigh=equal(),
  )  # fmt: skip
  _, metrics = sim.run(sim.init({'a': jnp.zeros(4)}), 1)
  assert sums and metrics['seen/weight'].tolist() == [3.0]


def test_a_claim_that_is_expected_and_not_made():
  silent = privacy.central(C, Z)
  silent = silent._replace(server=PASSES)
  params, pop = {'a': jnp.zeros(4)}, given.population(UPDATES)
  base = given.algorithm(), uniform(9, 3), equal(3.0)
  simulate((*base, privacy.central(C, Z)), params, pop, expect_privacy=True)
  simulate((*base, silent), params, pop)
  for layers in ((*base, silent), base, (*base, privacy.central(C, 0.0))):
    with pytest.raises(IncompatibleStages, match=r'claim of privacy is expected, and no layer of'):
      simulate(layers, params, pop, expect_privacy=True)


def test_nothing_but_a_mask_comes_after_a_share_of_noise():
  build(*shares(), MASK)
  for after in (Layer('own', cohort=Stage(shared)), Layer('own', server=PASSES), clip_layer()):
    refused(repr(after.name), "'integer_noise'", 'a share', layers=[*shares(), after])


def test_who_arrives_by_its_own_data_is_for_noise_on_the_sum():
  late = uniform(9, 3), stragglers(9, [1.0] * 9, deadline=2.0, looks='own data')
  build(privacy.central(C, Z), select=late)
  for noise in ([privacy.local(C, Z)], [*shares(), MASK]):
    refused("'deadline'", 'own data', layers=noise, select=late)


def test_a_layer_adds_noise_once():
  central, local = privacy.central(C, Z), privacy.local(C, Z)
  refused("'central'", 'on one of its sides', layers=[central._replace(client=local[1].client)])


def test_a_selecting_layer_keeps_no_state_of_the_sum_before_the_noise():
  kept = (Bounds(lambda ctx, bound: bound),)
  server = PASSES._replace(init=lambda ctx: jnp.float32(0), facts=kept)
  keeps = dropout(0.1)._replace(server=server)
  refused("'central'", "'dropout'", 'shares a state', layers=[privacy.central(C, Z), keeps])
  # Nor one that its select side made of who arrived, and that scales the noise afterwards.
  refused("'central'", "'dropout'", 'shares a state', layers=[keeps, privacy.central(C, Z)])
  build(privacy.central(C, Z), markov(9))  # whose state is of its select side alone


KEEPS = (Bounds(lambda ctx, bound: bound),)


@pytest.mark.first(4)
@pytest.mark.parametrize('place', ['before the clip', 'after the clip'])
@pytest.mark.parametrize('side', ['client', 'server'])
@pytest.mark.parametrize('asked', ['real', 'id', 'arrived'])
def test_who_is_in_the_cohort_turns_no_sign_before_the_noise(side, asked, place):
  def flip(ctx, message, state):
    odd = getattr(ctx.cohort, asked).sum() % 2 == 0
    return message._replace(update=tree.scale(jnp.where(odd, 1.0, -1.0), message.update)), state, {}

  flips, noise = Layer('flips', **{side: Stage(flip, facts=KEEPS)}), privacy.central(C, Z)
  both = [flips, noise] if place == 'before the clip' else [noise, flips]
  refused("'flips'", repr(asked), "'central'", 'cover', layers=both)
  build(flips)
  build(flips, *privacy.local(C, Z))


@pytest.mark.slow
def test_the_raw_weight_of_the_sum_is_shown_to_nobody_but_a_mask():
  seen = lambda ctx, m, s: (m, s, {'weight': m.weight})
  peeks = Layer('peeks', server=Stage(seen, facts=KEEPS))
  sim = build(privacy.central(C, Z), peeks, select=uniform(9, 2))
  _, metrics = sim.run(sim.init({'a': jnp.zeros(4)}), 1)
  assert metrics['peeks/weight'].tolist() == [3.0]


def test_a_state_of_each_client_that_is_made_of_all_messages():
  remembers = lambda ctx: tree.zeros(ctx.spec.update)
  first = lambda ctx, stack, rows: (stack, jax.tree.map(lambda x: x[::-1], stack.update), {})
  momentum = Layer('own', cohort=Stage(first, remembers, KEEPS))
  for layers in ([momentum, privacy.central(C, Z)], [privacy.central(C, Z), momentum]):
    refused("'central'", "'own'", 'later messages of others', layers=layers)
  build(momentum)
  build(*privacy.local(C, Z), momentum)


def test_a_sum_that_is_withheld_shows_how_many_arrived():
  waits = Layer('waits', client=PASSES._replace(facts=(Withholds(2), *KEEPS)))
  for layers in ([waits, privacy.central(C, Z)], [privacy.central(C, Z), waits]):
    refused("'central'", "'waits'", 'how many', layers=layers)
  build(waits, *privacy.local(C, Z))


def test_noise_by_example_needs_tasks_of_examples_by_themselves():
  noise = Noises(Gaussian(1.0), 'local', 'example', lambda n: Draws('poisson', n, 1, n))
  noisy = given.algorithm()
  noisy = noisy._replace(client=noisy.client._replace(facts=(*noisy.client.facts, noise)))
  for facts, fine in (((Prepares(),), False), ((Prepares(by_example=True),), True)):
    prepares = Layer('prepares', client=PASSES._replace(facts=facts))
    made = compose(prepares, noisy, uniform(9, 3), equal(3.0))
    plan = lambda made=made: simulate(made, {'a': jnp.zeros(4)}, given.population(UPDATES))
    if fine:
      plan()
    else:
      with pytest.raises(IncompatibleStages, match=r"'algorithm'.*'prepares'.*by_example=True"):
        plan()


def test_a_codec_that_states_no_bounds_has_none():
  whole = lambda draws, x, shapes: codec.Code((wire.Floats(x),), x[:0])
  grows = codec.layer_of(codec.Codec('grows', whole, lambda d, code, s: 9 * code.parts[0].values))
  refused("'grows'", 'states no bounds', "'central'", layers=[privacy.central(C, Z), grows])
  build(grows, privacy.central(C, Z))


def test_correlated_noise_needs_a_bound_that_stays():
  for noise in (privacy.tree(C, Z, 1), privacy.central(C, Z, mechanism='discrete_gaussian')):
    room = tuple(x for x in noise.client.facts if isinstance(x, Integers))
    adapts = noise._replace(client=Stage(PASSES.apply, facts=(*IN_THE_ROUND, *room)))
    refused(repr(noise.name), 'known only in the round', layers=[adapts])


def test_noise_by_example_before_the_algorithm_bounds_itself():
  noise = Noises(Gaussian(1.0), 'local', 'example', lambda n: Draws('poisson', n, 1, n))
  first = Layer('own', client=PASSES._replace(facts=(Prepares(), noise)))
  made = compose(first, given.algorithm(), uniform(9, 3), equal(3.0))
  simulate(made, {'a': jnp.zeros(4)}, given.population(UPDATES))


def test_a_plan_without_noise_needs_no_bound():
  build(stages.median(), weigh=by_examples())
  build(privacy.central(C, 0.0), UNSTATED['a server side x 10'], weigh=by_examples())


def test_noise_is_told_what_becomes_of_its_bound():
  wider = bounding('encode', lambda ctx, b: Bound(l2=b.l2 + 0.25))
  noise = privacy.central(C, Z)
  more = wider._replace(name='more')
  made = compose(given.algorithm(), uniform(9, 3), equal(3.0), noise, wider, more)
  told = (C + 0.5) * (1 + rounding(3))  # with the rounding of the sum of 3 clients
  assert made.bound(noise, 'server', {}).l2 == pytest.approx(told, rel=1e-12)
