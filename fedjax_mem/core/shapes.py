"""Shapes in the walk: what a side of a layer returns must fit what comes next.

chex finds the leaf that does not fit; the error names the layer as well, and the user sees it
before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from fedjax_mem.core.layer import IncompatibleStages, Layer
from fedjax_mem.core.message import Message
from fedjax_mem.core.tree import Tree


def check_message(layer: Layer, message: Message) -> None:
  """Raises `IncompatibleStages` unless one client's message is arrays, with a scalar weight."""
  wrong = _not_arrays(message)
  if not wrong and jnp.shape(message.weight) != ():
    wrong = _said(chex.assert_shape, message.weight, ())
  if wrong:
    raise IncompatibleStages(
      f'the client side of {layer.name!r} must return a Message of arrays whose weight is a '
      f'scalar: {wrong}'
    )


def check_stack(layer: Layer, stack: Any, clients: int) -> None:
  """Raises `IncompatibleStages` unless it is a stack of messages, all arrays of it [C, ...]."""
  wrong = '' if isinstance(stack, Message) else f'it is a {type(stack).__name__}.'
  wrong = wrong or _not_arrays(stack)
  if not wrong and any(x.shape[:1] != (clients,) for x in jax.tree.leaves(stack)):
    wrong = _said(chex.assert_tree_shape_prefix, stack, (clients,))
  if not wrong and stack.weight.shape != (clients,):
    wrong = _said(chex.assert_shape, stack.weight, (clients,))
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
  wrong = _not_arrays(found)
  if wrong or same(found, wanted):
    return wrong
  return _said(chex.assert_trees_all_equal_shapes_and_dtypes, found, wanted)


def same(a: Tree, b: Tree) -> bool:
  """Returns whether two trees agree in structure, shapes and dtypes (not in their values)."""
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  one, other = (jax.tree.flatten(jax.tree.map(like, x)) for x in (a, b))
  # By leaves and structure: nodes of a user's own kind need not know equality.
  return one == other


def _not_arrays(message: Tree) -> str:
  """Returns what is in a tree besides arrays, '' if nothing is."""
  # A weight of None is no leaf at all.
  weight = (message.weight,) if isinstance(message, Message) else ()
  other = [x for x in (*weight, *jax.tree.leaves(message)) if not hasattr(x, 'dtype')]
  return f'it holds {other[0]!r}, which is no array.' if other else ''


def _said(check: Callable[..., None], *arguments: Any) -> str:
  """Returns in chex's words what is wrong: that something is, was found before."""
  try:
    check(*arguments)
  except AssertionError as error:
    text = ' '.join(str(error).rpartition('failed:')[2].split())
    text = text.replace('Trees 0 and 1 differ in leaves', 'got, and wanted, differ in')
    structures = 'Error in tree structs equality check: trees 0 and 1 do not match, tree 0:'
    return text.replace(structures, 'got another structure,').replace('tree 1:', 'wanted')
  return 'another structure, shape or dtype.'  # chex's checks may be switched off
