"""The first parameters are drawn beside other work, and are those of the seed."""

import threading

import jax
import numpy as np
import pytest

from fedjax_mem.config import parts


def test_what_is_drawn_beside_other_work_is_waited_for():
  go = threading.Event()
  drawing = parts.beside(lambda: (go.wait(30), threading.current_thread().name))
  made = parts.Parts(None, None, None, {'w': jax.ShapeDtypeStruct((2,), np.float32)}, drawing)
  assert made.like['w'].shape == (2,)  # known before
  assert not drawing.done()
  go.set()
  assert made.params[0] and made.params[1].startswith('parameters')
  assert made.params is made.params


def test_what_fails_is_raised_where_it_is_asked_for():
  def fail():
    raise ValueError('input_shape must be another')

  drawing = parts.beside(fail)
  with pytest.raises(ValueError, match='input_shape'):
    parts.Parts(None, None, None, None, drawing).params  # noqa: B018


def test_known_parameters_are_there():
  assert parts.Parts(None, None, None, None, parts.known({'w': 3})).params == {'w': 3}
