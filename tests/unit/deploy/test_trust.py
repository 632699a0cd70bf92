"""What a client demands of a job: the pinned configuration, protection, noise of its own."""

import dataclasses

import pytest

from fedjax_mem.config import build
from fedjax_mem.config.load import config_from_dict
from fedjax_mem.core import Bounds, IncompatibleStages, Layer, Noises, Round, Stage, compose
from fedjax_mem.data import source
from fedjax_mem.deploy import trust

NOISE = {'l2_clip_norm': 1.0, 'noise_multiplier': 1.0}
L1 = {'l1_clip_norm': 1.0, 'noise_multiplier': 1.0}
SGD = {'steps': 2, 'rate': 0.5, **NOISE}


def job(*stages, **changes):
  raw = {
    'rounds': 2,
    'data': {'name': 'digits', 'num_clients': 8},
    'model': {'name': 'logistic'},
    'selection': {'cohort_size': 4},
    'weighting': {'name': 'equal'},
    'stages': [{'use': use, 'options': options} for use, options in stages],
  }
  return config_from_dict(raw | changes)


def layers_of(config) -> Round:
  data = source.from_arrays([[0.0, 1.0]] * 8, [0, 1] * 4, [[i] for i in range(8)])
  return build.build_layers(config, build.build_model(config, data), 8, data)


SUMMED = {'weighting': {'name': 'equal', 'options': {'divisor': 4.0}}}
SHARES = (('distributed', {**NOISE, 'shares': 2, 'bits': 24}), ('mask', {'bits': 24}))
MASKED = (('integers', {'value_range': 1.0}), ('mask', {}))
JOBS = {
  'plain': job(),
  'local': job(('local', NOISE)),
  'local_laplace': job(('local_laplace', L1)),
  'local_discrete': job(('local_discrete', NOISE)),
  'dp_sgd': job(algorithm={'name': 'dp_sgd', 'options': SGD}),
  'central': job(('central', NOISE), **SUMMED),
  'masks alone': job(*MASKED),
  'distributed': job(*SHARES, **SUMMED),
  'integers without a mask': job(*MASKED[:1]),
  'a clip without noise': job(('local', {**NOISE, 'noise_multiplier': 0.0})),
  'local under masks': job(
    ('central', {**NOISE, 'noise_multiplier': 0.0}), ('local', NOISE), *MASKED, **SUMMED
  ),
}
HAS = {
  'plain': 'neither noise nor a mask',
  'central': "central noise by client ('central')",
  'distributed': "distributed noise by client ('integer_noise') and a mask ('mask')",
  'masks alone': "a mask ('mask')",
  'local': "local noise by client ('local')",
  'local_laplace': "local noise by client ('local_laplace')",
  'local_discrete': "local noise by client ('local_discrete')",
  'dp_sgd': "local noise by example ('algorithm')",
}
MEETS = {
  'local': {'local', 'local_laplace', 'local_discrete', 'dp_sgd', 'local under masks'},
  'secagg': {'masks alone', 'distributed', 'local under masks'},
}


@pytest.mark.parametrize('require', trust.REQUIREMENTS)
@pytest.mark.parametrize('name', JOBS)
def test_a_job_that_protects_less_is_refused_with_what_it_has(name, require):
  layers = layers_of(JOBS[name])
  trust.check_required(layers, None)
  if name in MEETS[require]:
    trust.check_required(layers, require)
    return
  with pytest.raises(
    ValueError, match=rf'^the job must .* under --require {require}, got '
  ) as error:
    trust.check_required(layers, require)
  assert str(error.value).endswith(f', got {HAS.get(name, "neither noise nor a mask")}.')


def test_only_these_can_be_required():
  with pytest.raises(ValueError, match=r"^require must be one of 'local', 'secagg', got 'both'"):
    trust.check_required(layers_of(job()), 'both')


def test_a_mask_over_one_client_protects_nothing():
  one = dataclasses.replace(JOBS['masks alone'].selection, cohort_size=1)
  config = dataclasses.replace(JOBS['masks alone'], selection=one)
  with pytest.raises(ValueError, match=r'must sum at least two clients .* in cohorts of one\.$'):
    trust.check_required(layers_of(config), 'secagg')


@pytest.mark.parametrize('sampler', ['oort', 'power_of_choice', 'importance'])
def test_what_clients_report_to_be_selected_is_no_secret(sampler):
  config = job(*MASKED, selection={'name': sampler, 'cohort_size': 4})
  with pytest.raises(ValueError, match=r"without a look at their data under .*, got 'select'\.$"):
    trust.check_required(layers_of(config), 'secagg')


def noisy(*facts):
  same = lambda ctx, message, state: (message, state, {})
  return Layer('own', client=Stage(same, facts=facts))


def test_noise_counts_only_on_the_client_and_after_a_clip():
  config = JOBS['local']
  found = layers_of(config)
  mechanism = found.having(Noises)[0][2].mechanism
  rest = [x for x in found if x.name not in ('local', 'local_clip')]
  unclipped = compose(*rest, noisy(Noises(mechanism, 'local')))
  with pytest.raises(
    ValueError, match=r"^the job must clip .*, got local noise by client \('own'\)"
  ):
    trust.check_required(unclipped, 'local')
  clipped = compose(*rest, found[-2], noisy(Noises(mechanism, 'local')))
  trust.check_required(clipped, 'local')
  same = lambda ctx, message, state: (message, state, {})
  on_server = Layer('own', server=Stage(same, facts=(Noises(mechanism, 'local'),)))
  with pytest.raises(IncompatibleStages, match='adds noise that it calls local'):
    trust.check_required(compose(*rest, found[-2], on_server), 'local')
  untold = compose(*rest, found[-2], noisy(Bounds(lambda ctx, bound: bound)))
  with pytest.raises(ValueError, match=r'^the job must clip .* neither noise nor a mask'):
    trust.check_required(untold, 'local')


def test_what_breaks_a_promise_is_refused_before_it_counts():
  found = layers_of(JOBS['local'])
  late = compose(*found, *(x for x in layers_of(JOBS['masks alone']) if x.name == 'mask'))
  with pytest.raises(IncompatibleStages, match='masks integers'):
    trust.check_required(late, 'secagg')


CHANGES = [
  ({'seed': 3}, 'seed must be 0, as .* got 3 from'),
  ({'noise_seed': 0}, 'noise_seed must be left out, as .* got 0 from'),
  ({'client': {'learning_rate': 0.5}}, r'client\.learning_rate must be 0\.1, as .* got 0\.5 from'),
  (
    {'data': {'name': 'digits', 'num_clients': 8, 'options': {'a': 1}}},
    r'data\.options\.a must be',
  ),
  ({'selection': {'cohort_size': 4, 'clock': {'deadline': 1}}}, r'selection\.clock\.deadline must'),
  ({'stages': []}, r"stages\[0\]\.use must be 'local', as .* got left out from"),
  (
    {'stages': [{'use': 'local', 'options': {**NOISE, 'l2_clip_norm': 2.0}}]},
    r'stages\[0\]\.options\.l2_clip_norm must be 1\.0, as .* got 2\.0 from',
  ),
  (
    {'stages': [{'use': 'local', 'options': {**NOISE, 'l2_clip_norm': 1}}]},  # another hash
    r'stages\[0\]\.options\.l2_clip_norm must be 1\.0, as .* got 1 from',
  ),
  (
    {'stages': [{'use': 'local', 'options': NOISE, 'before_algorithm': True}]},
    r'stages\[0\]\.before_algorithm must be False, as .* got True from',
  ),
  ({'rounds': 3, 'seed': 9}, 'seed must be 0'),  # the first in the order of the format
]


@pytest.mark.parametrize('changes, words', CHANGES)
def test_another_configuration_is_refused_by_its_first_key(changes, words):
  pinned = JOBS['local']
  with pytest.raises(ValueError, match=f'^{words}') as error:
    trust.check_pin(job(*([] if 'stages' in changes else [('local', NOISE)]), **changes), pinned)
  assert '\n' not in str(error.value)


def test_what_changes_no_results_is_not_pinned():
  pinned = JOBS['local']
  execution = {'mode': 'loop'}
  received = job(('local', dict(reversed(NOISE.items()))), name='other', execution=execution)
  trust.check_pin(dataclasses.replace(received, deploy=pinned.deploy), pinned)
  trust.check_pin(pinned, dataclasses.replace(received, name='a'))


def test_repeatable_noise_takes_both_the_seed_and_the_flag():
  trust.check_noise_seed(job(), False)
  trust.check_noise_seed(job(noise_seed=0), True)
  with pytest.raises(
    ValueError, match=r'^noise_seed must be left out .* got 0: .*--repeatable-noise'
  ):
    trust.check_noise_seed(job(noise_seed=0), False)
  with pytest.raises(
    ValueError, match=r'^noise_seed must be given with --repeatable-noise, got none'
  ):
    trust.check_noise_seed(job(), True)
