"""Shapes in the walk: what a side of a layer returns must fit what comes next.

chex finds the leaf that does not fit; the error names the layer as well, and the user sees it
before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import chex

from fedjax_mem.core.layer import IncompatibleStages, Layer
from fedjax_mem.core.message import Message
from fedjax_mem.core.tree import Tree


def check_message(layer: Layer, message: Message) -> None:
  """Raises `IncompatibleStages` unless the weight of one client's message is a scalar."""
  unlike = _unlike(chex.assert_shape, message.weight, ())
  if unlike:
    raise IncompatibleStages(
      f'the client side of {layer.name!r} must return a Message whose weight is a scalar: {unlike}'
    )


def check_stack(layer: Layer, stack: Message, clients: int) -> None:
  """Raises `IncompatibleStages` unless all arrays of a stack of messages begin with [C]."""
  unlike = _unlike(chex.assert_tree_shape_prefix, stack, (clients,))
  unlike = unlike or _unlike(chex.assert_shape, stack.weight, (clients,))
  if unlike:
    raise IncompatibleStages(
      f'the cohort side of {layer.name!r} must return messages [C, ...] of the {clients} clients '
      f'that it received: {unlike}'
    )


def unlike(found: Tree, wanted: Tree) -> str:
  """Returns the first leaf whose path, shape or dtype is not as wanted; '' if there is none."""
  return _unlike(chex.assert_trees_all_equal_shapes_and_dtypes, found, wanted)


def _unlike(check: Callable[..., None], *arguments: Any) -> str:
  """Returns what chex says is wrong, '' if nothing is."""
  try:
    check(*arguments)
  except AssertionError as error:
    return ' '.join(str(error).partition('failed:')[2].split())
  return ''
