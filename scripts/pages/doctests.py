"""Examples in docstrings as blocks of code: for griffe, which reads the docstrings."""

import re
from typing import Any

import griffe

# From the first line of an example to the next empty line.
_EXAMPLE = re.compile(r'(?:^>>> .*\n?)(?:^\S.*\n?|^ +\S.*\n?)*', re.M)


class Doctests(griffe.Extension):
  """Puts the examples of each docstring between fences."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """Rewrites the docstring of an object."""
    if obj.docstring is not None:
      text = obj.docstring.value + '\n'
      obj.docstring.value = _EXAMPLE.sub(lambda x: f'```pycon\n{x[0].rstrip()}\n```\n', text)
