"""Robust rules in whole rounds: what is refused, skipped rounds, devices, and what attacks do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, robust, stages, tiny, twins

from fedjax_mem.core import IncompatibleStages, Layer, Stage, compose
from fedjax_mem.engine import Execution
from fedjax_mem.optim import fedavgm
from fedjax_mem.stages import aggregate as rules
from fedjax_mem.stages import attack as attacks
from fedjax_mem.stages import privacy
from fedjax_mem.stages.algorithm import fedsgd
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.select import poisson, round_robin
from fedjax_mem.stages.weigh import by_examples, equal

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
  ('round', 'words'),
  [
    ([rules.krum(2)], r"'krum' needs C >= 2f \+ 3 with f = 2, and 'select' selects about 6"),
    ([rules.bulyan(1)], r"'bulyan' needs C >= 4f \+ 3 with f = 1"),
    ([rules.trimmed_mean(3)], r"'trimmed_mean' needs C >= 2f \+ 1"),
    (
      [rules.bucketing(2), rules.krum(1)],
      "selects about 3 clients, fewer after 'bucketing': select more",
    ),
    (
      [stages.fixed_point(8), rules.median()],
      "'median' looks at each client's own update, and 'encode' leaves integers",
    ),
    ([stages.fixed_point(8), attacks.alie(1)], "'alie' looks at each client's own update"),
  ],
)
def test_what_does_not_fit_is_refused(round, words):
  with pytest.raises(IncompatibleStages, match=words):
    tiny.build(tiny.layers(*round))


@pytest.mark.slow
def test_masks_hide_what_a_rule_has_to_see_but_not_what_an_attack_does():
  hidden = (integers(4.0, clients=tiny.C), mask(clients=tiny.C))
  for round in ([rules.median(), *hidden], [*hidden, rules.median()]):
    with pytest.raises(IncompatibleStages, match=r"'median'.*'(mask|integers)'"):
      tiny.build(tiny.layers(*round))
  sim = tiny.build(tiny.layers(attacks.ipm(4, factor=2.0), *hidden))
  plain = tiny.build(tiny.layers(attacks.ipm(4, factor=2.0)))
  tiny.assert_close(tiny.execute(sim)[0].params, tiny.execute(plain)[0].params, atol=1e-4)


def test_the_place_and_the_divisor_of_the_weighing_matter():
  round = lambda *middle: compose(tiny.algorithm(), tiny.rota(), *middle)
  with pytest.raises(IncompatibleStages, match="'median' works on weighted messages"):
    tiny.build(round(rules.median(), equal()))
  with pytest.raises(IncompatibleStages, match="'ipm' works on weighted messages"):
    tiny.build(round(attacks.ipm(1), equal()))
  with pytest.raises(IncompatibleStages, match="'weigh' divides their sum by 6, whoever"):
    tiny.build(round(equal(6.0), rules.median()))


@pytest.mark.slow
def test_under_privacy_the_clip_bounds_attackers_that_look_at_nobody():
  updates = _updates()
  clip = privacy.central(1.0, 1e-6)
  flipped = attacks.sign_flip(4, scale=1e6)
  found = given.sums(given.build(updates, flipped, clip, weigh=equal(16.0)))[0]
  rows = np.concatenate([updates['a'].reshape(16, -1), updates['b']], 1)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  signs = np.where(np.arange(16) < 4, -1, 1)[:, None]
  np.testing.assert_allclose(found, (signs * rows).mean(0), atol=1e-5)
  for sees_all in (attacks.alie(4), attacks.ipm(4), attacks.scaling(4), attacks.mimic(4)):
    with pytest.raises(IncompatibleStages, match='sees all updates at once'):
      given.build(updates, sees_all, clip, weigh=equal(16.0))
  with pytest.raises(IncompatibleStages, match="put 'sign_flip' before the clip"):
    given.build(updates, clip, flipped, weigh=equal(16.0))


def test_a_poisson_cohort_goes_by_what_is_expected_of_it():
  few = poisson(tiny.N, 0.4, capacity=10)
  with pytest.raises(IncompatibleStages, match="'select' selects about 4 clients"):
    tiny.build(compose(tiny.algorithm(), few, equal(), rules.krum(1)))
  tiny.build(compose(tiny.algorithm(), few, equal(), rules.trimmed_mean(1)))


@pytest.mark.slow
def test_a_round_without_enough_clients_is_skipped_and_does_not_stop_the_run():
  """Of the rota's cohorts of 6 only that of the second round has 5 left, as Krum with f = 1 needs.

  Neither the parameters nor the momentum of the server move in the others.
  """
  server = fedavgm(0.1)
  algorithm = fedsgd(tiny.loss, batch_size=16, server_optimizer=server)
  sim = tiny.build(compose(algorithm, tiny.rota(), equal(), rules.krum(1)))
  states, skipped = [tiny.host(sim.init(tiny.initial()))], []
  for number in range(1, 5):
    state, metrics = tiny.execute(sim, number)
    states.append(state)
    skipped = metrics['krum/skipped'].tolist()
  assert skipped == [1, 0, 1, 1] and metrics['clients'].tolist() == [4, 5, 4, 4]
  assert metrics['krum/rows'].tolist() == [4, 5, 4, 4]
  keep = lambda s: (s.params, s.servers['algorithm'])
  tiny.assert_same_bits(keep(states[1]), keep(states[0]))
  assert np.abs(tiny.vec(states[2].params) - tiny.vec(states[1].params)).max() > 1e-4
  tiny.assert_same_bits(keep(states[4]), keep(states[2]))


def _updates(n=16):
  return {
    'a': RNG.normal(size=(n, 3, 7)).astype(np.float32),
    'b': RNG.normal(size=(n, 5)).astype(np.float32),
  }


@pytest.mark.devices(2)
@pytest.mark.slow
@pytest.mark.parametrize(
  ('layers', 'exchange'),
  [
    # From rows of clients to parts of coordinates.
    ([rules.median()], 'all-to-all'),
    ([rules.trimmed_mean(3)], 'all-to-all'),
    # Mixing needs whole rows, on each device.
    ([rules.nnm(2), rules.trimmed_mean(2)], 'all-gather'),
  ],
  ids=['median', 'trimmed_mean', 'nnm'],
)
def test_devices_that_share_the_coordinates_agree_with_one(layers, exchange):
  """26 coordinates over the devices: on 8 the last part is padded; the same bits."""
  updates = _updates()
  one, eight = (
    given.build(updates, *layers, weigh=by_examples(), execution=how)
    for how in ('vmap', 'loop on devices')
  )
  state = eight.init(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), eight.params))
  program = eight.segment.lower(state, eight.population, *tiny.rooted(0), np.int32(1)).compile()
  assert exchange in program.as_text()
  a, b = given.sums(one), given.sums(eight)
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.devices(2)
@pytest.mark.slow
def test_a_value_that_is_not_finite_counts_for_no_device():
  """A NaN that an attack leaves in one coordinate takes the client out of all parts, by name."""
  updates = _updates()

  def poisoned(execution):
    sim = given.build(updates, _nan(), rules.median(), weigh=by_examples(), execution=execution)
    return given.sums(sim)[0], given.play(sim)[1][0]

  one, metrics = poisoned('vmap')
  eight, _ = poisoned('loop on devices')
  np.testing.assert_allclose(one, eight, rtol=0, atol=1e-6)
  rows = np.concatenate([updates['a'].reshape(16, -1), updates['b']], 1)
  np.testing.assert_allclose(one, np.median(rows[1:], 0), atol=1e-6)
  assert metrics['median/rows'] == 15 and metrics['median/skipped'] == 0
  assert metrics['clients'] == 15 and sorted(metrics['not_finite'].tolist()) == [-1] * 15 + [0]


def _nan():
  """Returns a stacked layer that puts a NaN into one coordinate of the first client."""

  def cohort(ctx, stack, state):
    b = stack.update['b']
    b = b.at[:, 2].set(jnp.where(ctx.cohort.id == 0, jnp.nan, b[:, 2]))
    return stack._replace(update=stack.update | {'b': b}), state, {}

  return Layer('nan', cohort=Stage(cohort))


@pytest.mark.slow
def test_weights_are_taken_off_and_put_back():
  """Clients with more examples count no more to a median, and as much as they do to the RFA."""
  counts = [1, 9, 2, 7, 3, 4]
  data = tiny.client_data(counts)
  gradients = np.array([_gradient(d) for d in data])
  for rule, twin in (
    (rules.median(), robust.median),
    (rules.geometric_median(6), robust.geometric_median(6, 1e-6)),
  ):
    round = compose(
      fedsgd(tiny.loss, batch_size=16, server_optimizer=optax.sgd(1.0)),
      round_robin(6, 6),
      by_examples(),
      rule,
    )
    sim = tiny.build(round, Execution(mode='vmap', devices=1), pop=tiny.population(data))
    state, _ = tiny.execute(sim, 1)
    moved = tiny.vec(tiny.initial()) - tiny.vec(state.params)
    np.testing.assert_allclose(moved, twin(gradients, np.array(counts, float)), atol=2e-6)


def _gradient(data):
  """Returns the gradient of one client's mean loss at the initial parameters, by the twins."""
  return twins.gradient(twins.START, data['x'], data['y'])
