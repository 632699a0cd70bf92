"""What a plan says is what a run then reports: bytes exactly, and a chunk that fits."""

import pytest

from fedjax_mem.core import IncompatibleStages, Layer, Stage
from fedjax_mem.runner import loop, programs, tuning
from fedjax_mem.runner.planning import TO_MEASURE, DoesNotFit, plan

PARAMETERS = 650  # of the logistic model on digits
MB = 1e6
UNREAD = (0, 8)  # from jax 0.12 on a program is not given what it does not read, such as the root


def stage(use, **options):
  inner = ', '.join(f'{name} = {x}' for name, x in options.items())
  return f'stages=[{{use = "{use}", options = {{{inner}}}}}]'


def test_nothing_is_compiled_and_nothing_is_written(make, tmp_path, monkeypatch):
  config = make()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('FEDJAX_MEM_CACHE', str(tmp_path / 'cache'))
  before, there = programs.compiled().number, set(tmp_path.rglob('*'))
  found = plan(config)
  assert programs.compiled().number == before and set(tmp_path.rglob('*')) == there
  assert found.operations == 0 and found.compiled is None and found.fits


def test_what_it_says_of_a_tiny_run(make):
  found = plan(make())
  assert (found.capacity, found.devices, found.steps, found.side_by_side) == (4, 1, 1, 4)
  assert found.steady and found.cohort == 4 and not found.pooled and found.picked == 'table'
  assert found.parameters == 4 * PARAMETERS and found.up == found.down == (2625, 2625)
  assert found.stack == 0 and not any(found.client_states.values())
  assert found.peak.arguments >= found.data + found.parameters
  assert found.needed == found.peak.total + found.test


def test_states_of_clients_are_named_by_layer(make):
  found = plan(make(stage('error_feedback', codec='{use = "top_k", fraction = 0.1}')))
  assert found.client_states['error_feedback'] == 12 * 4 * PARAMETERS
  assert plan(make('algorithm.name=scaffold')).server_states['algorithm'] == 4 * PARAMETERS


def test_a_robust_rule_has_a_stack(make):
  assert plan(make(stage('median'))).stack == 4 * (4 * PARAMETERS + 4)


def test_of_a_cohort_that_varies_it_says_so(make):
  assert not plan(make('selection.dropout=0.2')).steady
  assert not plan(make('selection.name=poisson')).steady


def test_a_pooled_round_takes_all_clients_at_once(make):
  found = plan(make('algorithm.name=fedsgd'))
  assert found.pooled and found.side_by_side == 4 and found.steps == 1


BYTES = {
  'dense': (),
  'mlp': ('model.name=mlp',),
  'quantised': (stage('quantize', bits=4),),
  'down as well': (stage('downlink'),),
  'sent besides': ('algorithm.name=scaffold',),
  'two messages': (stage('power_sgd', rank=1),),
  'low rank': (stage('low_rank', rank=1),),
  'integers': (stage('integers', bits=16, value_range=1.0),),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', BYTES)
def test_bytes_are_those_of_the_records(make, tmp_path, undrawn, case):
  config = make('rounds=2', *BYTES[case])
  found = plan(config)
  assert found.up[0] == found.up[1] and found.down[0] == found.down[1]
  for record in loop.run(config, tmp_path, quiet=True).metrics:
    assert record['bytes_up'] == found.cohort * found.up[0]
    assert record['bytes_down'] == found.cohort * found.down[0]


@pytest.mark.slow
def test_bytes_that_depend_on_values_are_within_their_bounds(make, tmp_path, undrawn):
  config = make('rounds=3', stage('top_k', fraction=0.3))
  least, most = plan(config).up
  for record in loop.run(config, tmp_path, quiet=True).metrics:
    assert 4 * least <= record['bytes_up'] <= 4 * most and least < most


def own():
  """Returns a layer that does not state what it does to messages."""
  return Layer('own', client=Stage(lambda ctx, message, state: (message, state, {})))


def test_bytes_that_no_layer_states_are_unknown(make):
  found = plan(make(stage(f'{__name__}:own')))
  assert found.up is None and found.down == (2625, 2625)


def test_several_processes_have_a_share_each(make):
  one = plan(make('execution.devices=2', 'execution.data=divided'), memory_mb=9)
  two = plan(make('execution.devices=2'), memory_mb=9, processes=2)
  same = one._replace(processes=2, needed=-(-one.needed // 2), room=two.room)
  assert two == same and two.room.whose == 'all devices of a process'
  assert two.examples == 'divided' and plan(make('execution.devices=2')).examples == 'whole'
  with pytest.raises(ValueError, match=r'execution.devices must be a multiple of the 3 processes'):
    plan(make('execution.devices=2'), processes=3)
  with pytest.raises(ValueError, match=r'processes must have 16 devices in all, got \d'):
    plan(make('execution.devices=16'), processes=16)


WIDE = ('model.name=mlp', 'model.options.hidden=[512]', 'selection.cohort_size=12')


def chunked(make, chunk, **options):
  return plan(make(*WIDE, 'execution.mode=chunk', f'execution.chunk={chunk}'), **options)


def test_what_does_not_fit_names_the_largest_chunk_that_does(make):
  whole, one = chunked(make, 12).needed, chunked(make, 1).needed
  memory = (whole + one) / 2 / MB
  found = plan(make(*WIDE, 'execution.mode=vmap'), memory_mb=memory)
  assert not found.fits and found.looped and 1 <= found.chunk < 12
  with pytest.raises(DoesNotFit, match=f'execution.chunk = {found.chunk} does$'):
    found.check()
  fitting = chunked(make, found.chunk, memory_mb=memory)
  assert fitting.fits and fitting.chunk is None
  fitting.check()
  assert not chunked(make, 2 * found.chunk, memory_mb=memory).fits


def test_where_only_one_client_at_a_time_fits_it_says_so(make):
  found = plan(make(*WIDE), memory_mb=0.2)._replace(chunk=0, looped=True)
  with pytest.raises(DoesNotFit, match=r'only execution\.mode = "loop" does'):
    found.check()


def test_where_nothing_fits_it_says_so(make):
  found = plan(make(*WIDE), memory_mb=0.2)
  assert found.chunk == 0 and found.looped is False
  with pytest.raises(DoesNotFit, match='even one client at a time does not'):
    found.check()


@pytest.mark.parametrize('memory', [0, -1, float('nan')])
def test_memory_must_be_positive(make, memory):
  with pytest.raises(ValueError, match='memory must be a finite number > 0'):
    plan(make(), memory_mb=memory)


def test_bad_input_is_refused_as_by_a_run(make):
  with pytest.raises(IncompatibleStages, match='a claim of privacy is expected'):
    plan(make('privacy.delta=1e-3'))
  with pytest.raises(ValueError, match=r'selection\.cohort_size must be at most'):
    plan(make('selection.cohort_size=13'))


def test_candidates_that_a_run_would_measure_are_not_measured(make, monkeypatch):
  monkeypatch.setattr(tuning, 'in_table', lambda platform, params: False)
  before = programs.compiled().number
  found = plan(make())
  assert found.picked == TO_MEASURE and found.side_by_side == 4
  assert programs.compiled().number == before
  counts = {x.what: (x.least, x.most) for x in found.programs}
  assert counts['segment of a candidate'] == counts['initial state of a candidate'] == (1, 4)


def test_streamed_examples_are_those_of_one_segment(make):
  whole, part = plan(make()), plan(make('execution.stream_above_mb=0.09', 'evaluation.every=1'))
  assert part.streamed and not whole.streamed and part.data < whole.data
  assert part.needed == part.peak.total + part.data + part.test


@pytest.mark.slow
def test_the_compilers_number_is_beside_the_estimate(make):
  found = plan(make(), compile=True)
  assert found.peak.arguments - found.compiled.arguments in UNREAD
  assert found.compiled.total > found.compiled.arguments


BESIDE = '{use = "error_feedback", options = {codec = {use = "sign"}}}'


@pytest.mark.slow
@pytest.mark.devices(2)
@pytest.mark.parametrize(
  'options',
  [
    (),
    ('execution.stream_above_mb=0.1',),
    ('algorithm.name=scaffold',),
    (f'stages=[{BESIDE}, {{use = "median", options = {{}}}}]',),
  ],
  ids=['held', 'streamed', 'states', 'states beside a rule'],
)
def test_a_plan_of_divided_examples_and_states_is_that_of_one_device(make, options):
  options = (*options, 'execution.devices=2', 'data.num_clients=14', 'execution.slack=1')
  whole = plan(make(*options))
  found = plan(make(*options, 'execution.data=divided'), compile=True)
  # A streamed segment may have all of its clients on one device.
  assert found.examples == 'divided' and found.data <= whole.data * (1 if found.streamed else 0.75)
  assert found.peak.arguments - found.compiled.arguments in UNREAD
  assert 0.7 < found.peak.total / found.compiled.total < 1.3
  assert found.divided == any(found.client_states.values())
  assert found.capacity == whole.capacity
