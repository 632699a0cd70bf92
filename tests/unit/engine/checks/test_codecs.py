"""Codecs in the wrong company: the plan refuses, naming both stages and the reason."""

import numpy as np
import pytest
from reference import given, stages

from fedjax_mem.core import (
  Bound,
  Bounds,
  Fact,
  IncompatibleStages,
  Layer,
  Stage,
  Withholds,
  compose,
)
from fedjax_mem.stages import aggregate, attack, compress, privacy
from fedjax_mem.stages.compress._base import unbounded
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

UPDATES = {'a': np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)}
TOP = {'use': 'top_k', 'fraction': 0.2}


def refused(*told, layers):
  with pytest.raises(IncompatibleStages) as caught:
    given.build(UPDATES, *layers)
  for words in told:
    assert words in str(caught.value)


@pytest.mark.parametrize(
  'codec', [compress.top_k(0.2), compress.eden(), compress.error_feedback(TOP), compress.low_rank()]
)
def test_a_code_that_does_not_add_under_integers_or_masks(codec):
  refused(repr(codec.name), "'encode'", 'does not add', layers=[codec, *stages.secure_sum()])
  discrete = privacy.central(1.0, 1.0, mechanism='discrete_gaussian')
  refused(repr(codec.name), "'central'", 'does not add', layers=[codec, discrete])


@pytest.mark.slow
def test_a_code_that_adds_under_masks_gives_the_sum():
  kept = compress.random_k(0.5, unbiased=False)
  plain, masked = (given.sums(given.build(UPDATES, kept, *x)) for x in ((), stages.secure_sum(20)))
  np.testing.assert_allclose(masked, plain, atol=1e-5)
  assert 0 < np.count_nonzero(plain) <= 15


def test_integers_are_not_encoded():
  refused("'top_k'", "'encode'", 'integers', layers=[stages.fixed_point(8), compress.top_k(0.2)])


def test_two_codecs_are_one_chain():
  for second in (compress.quantize(), compress.random_k(0.5), compress.low_rank()):
    refused("'top_k'", repr(second.name), 'chain', layers=[compress.top_k(0.2), second])


@pytest.mark.slow
def test_local_noise_on_what_is_encoded():
  noise = privacy.local(1.0, 1.0)
  refused("'top_k'", "'local'", 'put', layers=[compress.top_k(0.2), noise])
  given.build(UPDATES, noise, compress.top_k(0.2))  # the other way round nothing is lost
  given.build(UPDATES, noise, compress.error_feedback(TOP))


@pytest.mark.slow
@pytest.mark.parametrize('clip', [privacy.central(1.0, 1.0), privacy.laplace(1.0, 1.0)])
def test_what_is_between_clip_and_noise_states_its_bound(clip):
  feedback = compress.error_feedback(TOP)
  refused(repr(clip.name), "'error_feedback'", 'remembers has no bound', layers=[clip, feedback])
  for codec, reason in (
    (compress.quantize(), 'rounding may enlarge'),
    (compress.random_k(0.5), 'multiplies what it sends by D / k'),
    (compress.eden(), 'unbiased may enlarge'),
    (compress.low_rank(), 'remembers has no bound'),
  ):
    refused(repr(clip.name), repr(codec.name), reason, layers=[clip, codec])
  kept = compress.random_k(k=3, unbiased=False)
  for codec in (compress.top_k(0.2), compress.sign(), kept, compress.chain(kept, 'sign')):
    given.build(UPDATES, clip, codec)
  given.build(UPDATES, feedback, clip)  # before the clip anything goes


def test_a_rotation_keeps_the_l2_norm_alone():
  given.build(UPDATES, privacy.central(1.0, 1.0), compress.rotate())
  refused("'laplace'", "'rotate'", 'L1', layers=[privacy.laplace(1.0, 1.0), compress.rotate()])


SILENT = {
  'client': Layer('own', client=Stage(lambda ctx, m, s: (m, s, {}))),
  'cohort': Layer('own', cohort=Stage(lambda ctx, m, s: (m, s, {}))),
}


class Studied(Fact):
  """A fact of research code, which says nothing of what a side does to messages."""


@pytest.mark.parametrize('side', SILENT)
@pytest.mark.parametrize('codec', [compress.top_k(0.2), compress.random_k(0.5)])
def test_a_side_that_states_nothing_beside_a_code(side, codec):
  silent = SILENT[side]
  studied = silent._replace(**{side: silent.sides[side]._replace(facts=(Studied(),))})
  # How many clients must arrive says nothing of what is done to their messages either.
  counts = () if side == 'cohort' else (Withholds(1),)
  counting = silent._replace(**{side: silent.sides[side]._replace(facts=counts)})
  for layers in ([codec, silent], [silent, codec], [codec, studied], [codec, counting]):
    refused(repr(codec.name), f"the {side} side of 'own'", 'does not state', layers=layers)
  stated = silent.sides[side]._replace(facts=(Bounds(lambda ctx, bound: bound),))
  given.build(UPDATES, codec, silent._replace(**{side: stated}))
  given.build(UPDATES, silent, weigh=equal())  # without a code it may


def wrapped(layer):
  """Returns a layer whose side before the sum repeats none of its promises."""
  side = 'cohort' if layer.client is None else 'client'
  inner = layer.sides[side]
  return layer._replace(name='own', **{side: Stage(inner.apply, inner.init)})


@pytest.mark.parametrize(
  'layer',
  [
    compress.top_k(0.2),
    aggregate.median(),
    attack.sign_flip(1),
    mask(clients=4),
    privacy.central(1.0, 1.0),
  ],
  ids=lambda x: x.name,
)
def test_what_was_wrapped_promises_nothing(layer):
  own, whole = wrapped(layer), integers(4.0, clients=4, dimension=30)
  round = compose(given.algorithm(), round_robin(4, 4), equal(), own)
  assert [x.name for x, _ in round.silent] == ['own']
  refused("'sign'", "'own'", 'does not state', layers=[compress.sign(), own])
  refused("'mask'", "'own'", layers=[whole, own, mask(clients=4)])
  if layer.name not in ('central', 'mask'):  # whose `init` has a word of its own
    refused("'central'", "'own'", 'no bound', layers=[privacy.central(1.0, 1.0), own])


def test_a_codec_that_was_wrapped_states_nothing():
  codec = compress.top_k(0.2)
  wrapped = codec._replace(name='own', client=Stage(codec.client.apply, codec.client.init))
  assert compose(given.algorithm(), round_robin(4, 4), equal(), wrapped).silent
  refused("'quantize'", "client side of 'own'", layers=[wrapped, compress.quantize()])
  refused("'mask'", "client side of 'own'", 'right before it', layers=[wrapped, mask(clients=4)])
  refused("'central'", "'own'", 'no bound', layers=[privacy.central(1.0, 1.0), wrapped])
  kept = wrapped._replace(client=wrapped.client._replace(facts=codec.client.facts))
  refused("'own'", "'quantize'", 'chain', layers=[kept, compress.quantize()])


def test_a_reason_is_told_where_it_is_known():
  fact = unbounded('so it is')
  assert fact.of(None, Bound(1.0, 1.0, 1.0)) == Bound() and fact.why == 'so it is'
