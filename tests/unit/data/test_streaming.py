"""A streamed segment gives each client the resident population's examples, bit for bit."""

import numpy as np
import pytest

from fedjax_mem.core import Examples
from fedjax_mem.data import flat
from fedjax_mem.data.source import from_arrays
from fedjax_mem.data.streaming import StreamedPopulation, must_stream
from fedjax_mem.data.table import distribute

CLIENTS = 12


@pytest.fixture(params=['memory', 'mapped'])
def data(request, tmp_path):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (300, 3, 3)).astype(np.uint8)
  y = rng.integers(0, 4, 300).astype(np.int32)
  if request.param == 'memory':
    cuts = np.sort(rng.choice(np.arange(1, 300), CLIENTS - 1, replace=False))
    return from_arrays(x, y, np.split(rng.permutation(300), cuts))
  block = flat.Block(x, y)
  flat.write(tmp_path, flat.Facts('toy', 4, (3, 3, 1)), {'train': [block], 'test': [block]})
  return distribute(flat.read(tmp_path, ''), 'quantity_skew', CLIENTS, 0, alpha=1.0)


def examples_of(population, client, capacity):
  count = population.count[client]
  view = Examples(
    population.arrays, population.index, population.start[client], count, count, capacity
  )
  return view.take(np.arange(int(count)))


@pytest.mark.slow
def test_equals_the_resident_population_bit_for_bit(data):
  resident = data.population()
  with StreamedPopulation(data, 6) as stream:
    for ids in ([[0, 1, 2], [3, 4, 5]], [[11, 0, 5], [5, 0, 11]], [[7, 99, 7], [12, 12, 12]]):
      segment = stream.segment(np.array(ids))
      assert np.array_equal(segment.count, resident.count)
      for client in {i for row in ids for i in row if i < CLIENTS}:
        expected = examples_of(resident, client, int(data.counts.max()))
        got = examples_of(segment, client, int(data.counts.max()))
        for name, values in expected.items():
          assert got[name].dtype == values.dtype and np.array_equal(got[name], values)


def test_shapes_never_change_and_are_bounded_by_the_largest_clients(data):
  with StreamedPopulation(data, 4) as stream:
    assert stream.capacity == np.sort(data.counts)[-4:].sum()
    segments = [stream.segment(np.array(ids)) for ids in ([[0, 1], [2, 3]], [[4, 4]], [[99]])]
    assert {s.arrays['x'].shape for s in segments} == {(stream.capacity, 3, 3)}
    assert {s.index.shape for s in segments} == {(stream.capacity,)}
    assert np.array_equal(segments[0].index, np.arange(stream.capacity))
    assert stream.segment(np.argsort(data.counts)[None, -4:]).start.max() < stream.capacity
    sizes = sum(a.nbytes for a in segments[0].arrays.values()) + segments[0].index.nbytes
    assert stream.nbytes == sizes + segments[0].start.nbytes + segments[0].count.nbytes


def test_clients_outside_the_segment_start_at_zero(data):
  with StreamedPopulation(data, 2) as stream:
    segment = stream.segment(np.array([[5, 7]]))
  assert segment.start[7] == data.counts[5]
  assert not np.delete(np.asarray(segment.start), 7).any()


def test_prefetch_gives_what_segment_gives_and_earlier_ones_stay(data):
  ids = [np.array([[0, 1]]), np.array([[2, 3]]), np.array([[3, 0]])]
  with StreamedPopulation(data, 2) as stream:
    expected = [stream.segment(i) for i in ids]
    taken = []
    stream.prefetch(ids[0])
    for following in (*ids[1:], None):
      taken.append(stream.take())
      if following is not None:
        stream.prefetch(following)
  for a, b in zip(taken, expected, strict=True):
    assert np.array_equal(a.arrays['x'], b.arrays['x']) and np.array_equal(a.start, b.start)


def test_misuse_is_refused(data):
  with StreamedPopulation(data, 2) as stream:
    with pytest.raises(ValueError, match='client_ids must be at most 2 distinct clients, got 3'):
      stream.segment(np.array([0, 1, 2]))
    with pytest.raises(ValueError, match='client_ids must be integers >= 0'):
      stream.segment(np.array([-1]))
    with pytest.raises(ValueError, match='take must follow prefetch'):
      stream.take()
    stream.prefetch(np.array([0]))
    with pytest.raises(ValueError, match='prefetch must be followed by take'):
      stream.prefetch(np.array([1]))
    stream.take()
    stream.prefetch(np.array([0, 1, 2]))
    with pytest.raises(ValueError, match='distinct clients'):
      stream.take()
  with pytest.raises(ValueError, match='clients_per_segment must be'):
    StreamedPopulation(data, 0)


def test_what_does_not_fit_must_stream(data):
  assert must_stream(data, data.nbytes - 1) and not must_stream(data, data.nbytes)
