"""Where examples come from: all on the device, or those of the next segment."""

import jax
import numpy as np
import pytest

from fedjax_mem.config.build import build
from fedjax_mem.core import Looks, Stage, compose
from fedjax_mem.data.streaming import StreamedPopulation
from fedjax_mem.engine import Execution, simulate
from fedjax_mem.runner import examples


def parts_of(make, *overrides):
  return build(make('data.num_clients=30', 'selection.cohort_size=3', *overrides))


def simulation(parts, source):
  return simulate(
    parts.layers,
    parts.params,
    source.population,
    execution=Execution(devices=1),
    max_rounds=source.max_rounds,
    shape=source.shape,
    transforms=(parts.data.preprocess,),
  )


def held(population, data, client):
  """The rows of `data` that a population gives a client, found by their values."""
  start, count = int(population.start[client]), int(population.count[client])
  rows = np.asarray(population.index)[start : start + count]
  return np.asarray(population.arrays['x'])[rows]


def test_what_fits_stays_on_the_device(make):
  parts = parts_of(make)
  for cap in (None, 1.0):
    source = examples.source(parts.data, parts.layers, cap, 8)
    assert type(source) is examples.Source and source.max_rounds == 8
    assert source.ahead(None, None, 3) is None
    assert source.population.index.shape == (1438,)


@pytest.mark.slow
def test_each_segment_has_its_clients_and_its_buffer_never_changes(make):
  parts = parts_of(make, 'data.partition=dirichlet', 'data.alpha=1')
  source = examples.source(parts.data, parts.layers, 0.099, 8)
  assert isinstance(source, examples.Streamed)
  assert 1 < source.max_rounds < 8
  sim = simulation(parts, source)
  state = sim.init(parts.params)
  shapes = set()
  for rounds in (1, 2, source.max_rounds, 1):
    ids = np.unique(np.asarray(sim.cohorts(state, rounds)))
    population = source.ahead(sim, state, rounds)
    shapes.add(str(jax.tree.map(lambda x: (x.shape, x.dtype), population)))
    for client in ids[ids < 30]:
      expected = parts.data.arrays['x'][parts.data.rows(client)]
      np.testing.assert_array_equal(held(population, parts.data, client), expected)
    state = state._replace(round=state.round + rounds)  # as the rounds would leave it
  assert len(shapes) == 1
  assert 2 * population.arrays['x'].nbytes < 0.099e6
  source.close()


@pytest.mark.slow
def test_the_next_segment_is_gathered_while_this_one_runs(make, monkeypatch):
  parts = parts_of(make)
  source = examples.source(parts.data, parts.layers, 0.08, 8)
  sim = simulation(parts, source)
  state = sim.init(parts.params)
  waited = []
  segment = StreamedPopulation.segment

  def counted(self, ids):
    waited.append(len(ids))
    return segment(self, ids)

  monkeypatch.setattr(StreamedPopulation, 'segment', counted)
  source.ahead(sim, state, 1)
  source._stream.take()
  # The first is gathered on the spot, the longest possible next one ahead of time.
  assert waited == [1, source.max_rounds]
  source.close()


def with_feedback(layers):
  """The layers with a sampler whose draws depend on a table of its clients."""
  first = layers.drawing

  def apply(ctx, draw, state):
    # Those who have taken part the least.
    ids = np.arange(3) + jax.numpy.argmin(ctx.table[:28])
    draw, state, metrics = first.select.apply(ctx, draw, state)
    return draw._replace(cohort=draw.cohort._replace(id=ids.astype(np.int32))), state, metrics

  def note(ctx, value, state):
    return value, state + 1, {}

  select = Stage(apply, facts=(layers.draws, Looks("others' data")))
  asks = Stage(note, lambda ctx: jax.numpy.int32(0))
  return compose(*(x._replace(select=select, client=asks) if x is first else x for x in layers))


@pytest.mark.slow
def test_a_sampler_with_feedback_is_streamed_one_round_at_a_time(make):
  parts = parts_of(make)
  parts = parts._replace(layers=with_feedback(parts.layers))
  source = examples.source(parts.data, parts.layers, 0.08, 8)
  assert source.max_rounds == 1
  sim, resident = simulation(parts, source), None
  whole = examples.source(parts.data, parts.layers, None, 8)
  resident = simulation(parts, whole)
  a, b = sim.init(parts.params), resident.init(parts.params)
  for _ in range(4):
    a, _ = sim.run(a, 1, source.ahead(sim, a, 1))
    b, _ = resident.run(b, 1)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert int(a.clients['select'].sum()) == 12 and int(a.clients['select'].max()) == 1
  source.close()


@pytest.mark.parametrize('cap', [1e-9, 0.001, 0.01])
def test_a_cap_that_holds_not_even_one_round_is_refused(make, cap):
  parts = parts_of(make)
  with pytest.raises(ValueError, match=r'must hold two segments of one round, 0.0\d+ MB, got'):
    examples.source(parts.data, parts.layers, cap, 8)
