"""The memory that there is, and the largest chunk that fits it."""

import types

import jax
import numpy as np
import pytest

from fedjax_mem.runner import room


@pytest.mark.parametrize('most', [1, 2, 7, 8, 50])
def test_the_largest_chunk_is_found(most):
  for limit in range(most + 2):
    asked = []

    def fits(chunk, limit=limit, asked=asked):
      asked.append(chunk)
      return chunk <= limit

    assert room.largest(fits, most) == min(limit, most)
    assert max(asked) <= most and len(asked) <= 2 * most.bit_length()


def on(platform, **stats):
  """A simulation on a device that says this of its memory."""
  device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats or None)
  mesh = types.SimpleNamespace(devices=np.array([device], object))
  layout = types.SimpleNamespace(mesh=mesh)
  return types.SimpleNamespace(setting=types.SimpleNamespace(layout=layout))


def test_host_devices_share_the_memory_of_the_machine():
  found = room.of(on('cpu'))
  assert found.whose == 'all devices' and 10**8 < found.bytes < 10**14


def test_an_accelerator_says_what_it_has():
  assert room.of(on('gpu', bytes_limit=123)) == (123, 'a device', 'of the device')
  with pytest.raises(ValueError, match='memory must be given'):
    room.of(on('gpu'))


@pytest.mark.parametrize('platform, whose', [('cpu', 'all devices'), ('gpu', 'a device')])
def test_what_is_given_counts(platform, whose):
  assert room.of(on(platform), 1.5) == (1_500_000, whose, 'given')
  with pytest.raises(ValueError, match='memory must be'):
    room.of(on(platform), 0)


def test_a_control_group_may_have_less(monkeypatch):
  for text, bytes in (('1000\n', 1000), ('max\n', None)):
    monkeypatch.setattr(room.pathlib.Path, 'read_text', lambda self, text=text: text)
    assert room.of(on(jax.default_backend())).bytes == bytes or bytes is None
