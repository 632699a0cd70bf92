"""The platform that programs are made for: what depends on it asks here, and nobody asks jax.

It is the one that jax computes on, unless somebody asks for another: a whole round is then traced
with the paths of a platform that is not there, and can be lowered for it.

>>> with made_for('cuda'):
...   current()
'gpu'
"""

from contextlib import AbstractContextManager

import jax

from fedjax_mem.core import validate

# As `jax.default_backend` names them, and the names of `lowering_platforms` for the same.
_NAMES = {'cpu': 'cpu', 'gpu': 'gpu', 'cuda': 'gpu', 'rocm': 'gpu', 'tpu': 'tpu'}
# A context that jax knows: what was traced for one platform is not taken for another.
_asked = jax.make_user_context(None)


def current() -> str:
  """Returns the platform that is traced for: 'cpu', 'gpu', 'tpu' or another that jax names."""
  return _asked.value or jax.default_backend()


def made_for(name: str) -> AbstractContextManager[None]:
  """Returns a context in which `current` is another; what is lowered has to be told it as well.

  It belongs around `simulate` and around what traces the program, for example:

      with platforms.made_for('cuda'):
        traced = simulate(layers, params, population).traced()
      text = traced.lower(lowering_platforms=('cuda',)).as_text()

  Args:
    name: 'cpu', 'gpu', 'cuda', 'rocm' or 'tpu'.

  Raises:
    ValueError: another name.
  """
  validate.one_of(tuple(_NAMES), name=name)
  context: AbstractContextManager[None] = _asked(_NAMES[name])
  return context
