"""The games: honest noise passes, each fault is refuted, and what cannot be refuted is void."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import account
from fedjax_mem.core import Draws, IncompatibleStages, Layer, Noises, Stage
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import _base, poisson
from fedjax_mem.studies import games

C, DELTA, TRIALS = 0.3, 1e-2, 100_000
PARAMS = {'b': jnp.zeros(3), 'w': jnp.zeros((5, 3))}
# name -> (multiplier z -> layer, the z that is claimed)
RELEASES = {
  'central': (lambda z: privacy.central(C, z), 1.0),
  'per layer': (lambda z: privacy.central(C, z, per_layer=True), 1.0),
  'discrete': (lambda z: privacy.central(C, z, mechanism='discrete_gaussian'), 1.0),
  'laplace': (lambda z: privacy.laplace(C, z), 0.4),
  'adaptive': (lambda z: privacy.adaptive_clip(z, 60.0, initial_l2_clip_norm=C), 1.0),
}


def play(name, part, params=PARAMS, layer=None, trials=TRIALS, delta=DELTA):
  """Returns what the game finds of noise that is `part` of what is claimed."""
  make, z = RELEASES[name]
  claimed = make(z).fact(Noises).mechanism
  layers = (make(z * part) if layer is None else layer,)
  return games.release(layers, claimed, params, delta=delta, trials=trials)


def unclipped(layer):
  """Returns the layer without its clip; it states what an honest one does."""

  def client(ctx, message, state):
    return message, state, {}

  return layer._replace(client=Stage(client, facts=layer.client.facts))


@pytest.mark.slow
@pytest.mark.parametrize('name', RELEASES)
def test_the_noise_that_is_claimed_passes(name):
  found = play(name, 1)
  assert found.claimed > 1 and found.trials == TRIALS
  assert 0.5 < found.found < found.claimed < found.best  # the attack is worth something
  assert found.verdict == 'not refuted'


@pytest.mark.slow
@pytest.mark.parametrize('name', RELEASES)
@pytest.mark.parametrize('part', [1 / 2, 1 / 3, 2 / 3])
def test_less_noise_than_is_claimed_is_refuted(name, part):
  assert play(name, part).verdict == 'refuted'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['central', 'laplace'])
def test_noise_that_is_off_is_refuted_by_as_much_as_can_be_proved(name):
  found = play(name, 0)
  assert found.verdict == 'refuted' and found.found == found.best


@pytest.mark.slow
def test_a_clip_that_is_off_is_refuted():
  found = play('central', 1, layer=unclipped(RELEASES['central'][0](1.0)))
  assert found.verdict == 'refuted' and found.found == found.best


@pytest.mark.slow
def test_a_clip_array_by_array_is_refuted():
  """Each of nine arrays clipped to the whole bound: together three times what is claimed."""
  honest = privacy.central(C, 1.0)

  def client(ctx, message, state):
    each = lambda x: x * jnp.minimum(1, C / jnp.maximum(jnp.linalg.norm(x), 1e-9))
    return message._replace(update=jax.tree.map(each, message.update)), state, {}

  faulty = honest._replace(client=Stage(client, facts=honest.client.facts))
  params = {str(i): jnp.zeros(2) for i in range(9)}
  assert play('central', 1, params, faulty).verdict == 'refuted'
  assert play('central', 1, params).verdict == 'not refuted'


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['off', 'half', 'two thirds', 'unclipped'])
def test_what_few_trials_cannot_refute_is_void(fault):
  """And never 'not refuted', which would read as if it had been tried."""
  part = {'off': 0, 'half': 1 / 2, 'two thirds': 2 / 3, 'unclipped': 1}[fault]
  layer = unclipped(RELEASES['central'][0](1.0)) if fault == 'unclipped' else None
  found = play('central', part, layer=layer, trials=60)
  assert found.best < found.claimed and found.verdict == 'void'


@pytest.mark.slow
def test_the_claim_is_what_the_accountant_says_of_one_release_without_sampling():
  everyone = Draws('poisson', 4, 4, 4)
  mechanism = privacy.central(C, 1.0).fact(Noises).mechanism
  assert play('central', 1).claimed == account.epsilon(everyone, mechanism, 1, DELTA).epsilon


@pytest.mark.parametrize(
  'layers',
  [(privacy.tree(C, 1.0, 4),), privacy.local(C, 1.0), (privacy.matrix_factorization(C, 1.0, 4),)],
  ids=('tree', 'local', 'matrix'),
)
def test_a_game_is_refused_where_it_means_nothing(layers):
  with pytest.raises(IncompatibleStages, match='fresh central noise by client'):
    games.release(layers, layers[-1].fact(Noises).mechanism, PARAMS, delta=DELTA, trials=20)


# The draw of the cohort.


def fixed(number):
  """Returns a cohort of fixed size that states to be drawn by Poisson sampling."""
  law = poisson(number, 0.5, capacity=number).fact(Draws)

  def draw(ctx, eligible, state):
    ids = _base.ordered_sample(ctx.key, number, number)
    real = jnp.arange(number) < games.CLIENTS // 2
    return _base.members(ids, real, 0.5, number), state, {}

  return Layer('select', select=_base.drawing(draw, law))


def drawn(sampler, part=1.0, z=0.7):
  honest = privacy.central(C, z)
  layers = (privacy.central(C, z * part),)
  claimed = honest.fact(Noises).mechanism
  return games.draw(sampler, layers, claimed, PARAMS, delta=DELTA, trials=TRIALS)


HONEST = functools.partial(poisson, rate=0.5)


@pytest.mark.slow
def test_a_poisson_cohort_passes_as_one():
  found = drawn(HONEST)
  law = Draws('poisson', 8, 4.0, 8)
  mechanism = privacy.central(C, 0.7).fact(Noises).mechanism
  assert found.claimed == account.epsilon(law, mechanism, 1, DELTA).epsilon
  assert found.verdict == 'not refuted'


@pytest.mark.slow
def test_a_cohort_of_fixed_size_accounted_as_poisson_is_refuted():
  assert drawn(fixed).verdict == 'refuted'


# What trials can prove.


def test_the_best_bound_is_that_of_a_perfect_attack():
  """Four fifths of 10,000 trials a side, none of them wrong, at a confidence of 95% for both."""
  scores = np.random.default_rng(0).normal(size=(2, 10_000))
  found, best = games.bounds('epsilon_clopper_pearson', scores[0], scores[1], 1e-5)
  wrong = -math.expm1(math.log(0.025) / 8000)
  assert best == pytest.approx(math.log((1 - wrong - 1e-5) / wrong), rel=1e-6)
  assert found < 0.1 < best < 7.7
  apart, same = games.bounds('epsilon_clopper_pearson', scores[0] + 100, scores[1], 1e-5)
  assert same == best and best - 0.01 < apart <= best


def test_verdicts():
  base = games.Finding('release', 3.0, 1.0, 5.0, 1e-5, 100)
  assert base.verdict == 'not refuted'
  assert base._replace(found=3.1).verdict == 'refuted'
  assert base._replace(best=2.9).verdict == 'void'


@pytest.mark.parametrize('trials', [0, 19, 2.5])
def test_too_few_trials_are_refused(trials):
  with pytest.raises(ValueError, match='trials must be'):
    play('central', 1, trials=trials)
