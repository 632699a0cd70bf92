"""Shapes in the walk: what a side of a layer returns must fit what comes next.

chex finds the leaf that does not fit; the error names the layer as well, and the user sees it
before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax

from fedjax_mem.core.layer import IncompatibleStages, Layer
from fedjax_mem.core.message import Message
from fedjax_mem.core.tree import Tree


def check_message(layer: Layer, message: Message) -> None:
  """Raises `IncompatibleStages` unless one client's message is arrays, with a scalar weight."""
  wrong = _not_arrays(message) or _unlike(chex.assert_shape, message.weight, ())
  if wrong:
    raise IncompatibleStages(
      f'the client side of {layer.name!r} must return a Message of arrays whose weight is a '
      f'scalar: {wrong}'
    )


def check_stack(layer: Layer, stack: Message, clients: int) -> None:
  """Raises `IncompatibleStages` unless all arrays of a stack of messages begin with [C]."""
  wrong = _not_arrays(stack) or _unlike(chex.assert_tree_shape_prefix, stack, (clients,))
  wrong = wrong or _unlike(chex.assert_shape, stack.weight, (clients,))
  if wrong:
    raise IncompatibleStages(
      f'the cohort side of {layer.name!r} must return messages [C, ...] of the {clients} clients '
      f'that it received: {wrong}'
    )


def check_sent(layer: Layer, found: Tree, wanted: Tree) -> None:
  """Raises `IncompatibleStages` unless a layer gives back what it received before the sum."""
  wrong = unlike(found, wanted)
  if wrong and layer.server is None:
    raise IncompatibleStages(
      f'the client or cohort side of {layer.name!r} must return the shapes and dtypes that it '
      f'receives, or {layer.name!r} needs a server side that restores them: {wrong}'
    )
  if wrong:
    raise IncompatibleStages(
      f'the server side of {layer.name!r} must return what its client side receives: {wrong}'
    )


def check_state(name: str, whose: str, found: Tree, wanted: Tree) -> None:
  """Raises `ValueError` unless a state keeps its structure, shapes and dtypes."""
  wrong = unlike(found, wanted)
  if wrong and not jax.tree.leaves(wanted):
    wrong += f' ({name!r} declares no state: give the side an init)'
  if wrong:
    raise ValueError(
      f'the {whose} state of {name!r} must keep its structure, shapes and dtypes: {wrong}'
    )


def unlike(found: Tree, wanted: Tree) -> str:
  """Returns the first leaf whose path, shape or dtype is not as wanted; '' if there is none."""
  return _not_arrays(found) or _unlike(chex.assert_trees_all_equal_shapes_and_dtypes, found, wanted)


def _not_arrays(tree: Tree) -> str:
  """Returns what is in a tree besides arrays, '' if nothing is."""
  other = [x for x in jax.tree.leaves(tree) if not hasattr(x, 'dtype')]
  return f'it holds {other[0]!r}, which is no array.' if other else ''


def _unlike(check: Callable[..., None], *arguments: Any) -> str:
  """Returns what chex says is wrong, '' if nothing is."""
  try:
    check(*arguments)
  except AssertionError as error:
    said = ' '.join(str(error).partition('failed:')[2].split())
    said = said.replace('Trees 0 and 1 differ in leaves', 'got, and wanted, differ in')
    structures = 'Error in tree structs equality check: trees 0 and 1 do not match, tree 0:'
    return said.replace(structures, 'got another structure,').replace('tree 1:', 'wanted')
  return ''
