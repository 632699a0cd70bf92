"""Between which integers a traced program's results lie, whatever its arguments are.

A message's bytes are computed in the compiled round. Where they follow from shapes alone, the trace
has them as constants; where they depend on values (the gaps between indices), it has their bounds.
Both are found by interval arithmetic on scalars; what no rule covers is unknown.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from fedjax_mem.engine.flat import CALLS

# (least, most), both included; None: unknown.
Range = tuple[int, int] | None
_SAME = ('convert_element_type', 'broadcast_in_dim', 'reshape', 'squeeze', 'copy', 'expand_dims')
_BOUNDS = ('reduce_max', 'reduce_min', 'slice', 'concatenate', 'stack', 'transpose')


def of_quotients(program: Any) -> list[Range]:
  """Returns the range of `value` for each result that is `count * (value // unit)`; else None.

  Args:
    program: a trace, a `ClosedJaxpr`.
  """
  made: dict[Any, Any] = {}
  known: dict[Any, Range] = {}
  _run(program, [None] * len(program.jaxpr.invars), made, known)
  found: list[Range] = []
  for x in program.jaxpr.outvars:
    product: Any = made.get(x)
    times = product is not None and product.primitive.name == 'mul'
    quotient: Any = made.get(product.invars[1]) if times else None
    divides = quotient is not None and quotient.params.get('name') == 'floor_divide'
    found.append(_read(quotient.invars[0], known) if divides else None)
  return found


def _run(
  program: Any, given: list[Range], made: dict[Any, Any], known: dict[Any, Range]
) -> list[Range]:
  """Returns the ranges of a program's results; `made` gets the equation of each variable."""
  jaxpr = program.jaxpr
  for x, value in zip(jaxpr.constvars, program.consts, strict=True):
    known[x] = _constant(value)
  known.update(zip(jaxpr.invars, given, strict=True))
  for eqn in jaxpr.eqns:
    ins = [_read(x, known) for x in eqn.invars]
    made.update((x, eqn) for x in eqn.outvars)
    name = eqn.primitive.name
    if name in CALLS:
      inner = eqn.params[CALLS[name]]
      inner = inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())
      outs = _run(inner, ins, {}, {})
    else:
      outs = [_ranged(eqn, ins)] * len(eqn.outvars)
    for x, own in zip(eqn.outvars, outs, strict=True):
      known[x] = own if own is not None else _of_type(x.aval)
  return [_read(x, known) for x in jaxpr.outvars]


def _read(atom: Any, known: dict[Any, Range]) -> Range:
  return _constant(atom.val) if isinstance(atom, jex.Literal) else known[atom]


def _constant(value: Any) -> Range:
  """Returns the range of a constant; None for one that is not of integers."""
  dtype = getattr(value, 'dtype', np.asarray(value).dtype)
  if not (np.issubdtype(dtype, np.integer) or dtype == np.bool_) or not np.size(value):
    return None
  array = np.asarray(value)
  return int(array.min()), int(array.max())


def _of_type(aval: Any) -> Range:
  """Returns the range of all values of a type; None but for booleans."""
  return (0, 1) if getattr(aval, 'dtype', None) == np.bool_ else None


def _ranged(eqn: Any, ins: list[Range]) -> Range:
  """Returns the range of an operation's result, or None."""
  name = eqn.primitive.name
  if name in _SAME:
    whole = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer)
    return ins[0] if whole or eqn.outvars[0].aval.dtype == np.bool_ else None
  if name == 'reduce_sum' and ins[0] is not None:
    count = eqn.invars[0].aval.size // max(1, eqn.outvars[0].aval.size)
    return ins[0][0] * count, ins[0][1] * count
  if name == 'select_n' and None not in ins[1:]:
    known = [x for x in ins[1:] if x is not None]
    if ins[0] is not None and ins[0][0] == ins[0][1]:
      return known[ins[0][0]]
    return min(x[0] for x in known), max(x[1] for x in known)
  if name in ('min', 'max'):
    return _extreme(name, ins)
  if name in _BOUNDS and None not in ins:
    known = [x for x in ins if x is not None]
    return min(x[0] for x in known), max(x[1] for x in known)
  rule = _RULES.get(name)
  if rule is None or any(x is None for x in ins):
    return None
  return rule(*ins)


def _extreme(name: str, ins: list[Range]) -> Range:
  """Returns the range of a minimum or a maximum; of an unknown value it is half known.

  Counts are never negative, so that an unknown one is at least 0 in a minimum.
  """
  known = [x for x in ins if x is not None]
  if name == 'min' and known:
    least = 0 if len(known) < len(ins) else min(x[0] for x in known)
    return min(least, *(x[0] for x in known)), min(x[1] for x in known)
  if len(known) < len(ins):
    return None
  return max(x[0] for x in known), max(x[1] for x in known)


def _corners(rule: Callable[[int, int], int]) -> Callable[..., Range]:
  def ranged(a: tuple[int, int], b: tuple[int, int]) -> Range:
    found = [rule(x, y) for x in a for y in b]
    return min(found), max(found)

  return ranged


def _compared(rule: Callable[[int, int], bool]) -> Callable[..., Range]:
  """Returns the range of a comparison: known if the operands are."""

  def ranged(a: tuple[int, int], b: tuple[int, int]) -> Range:
    if a[0] != a[1] or b[0] != b[1]:
      return 0, 1
    return (int(rule(a[0], b[0])),) * 2

  return ranged


_RULES: dict[str, Callable[..., Range]] = {
  'add': _corners(lambda x, y: x + y),
  'sub': _corners(lambda x, y: x - y),
  'mul': _corners(lambda x, y: x * y),
  'not': lambda a: (1 - a[1], 1 - a[0]) if 0 <= a[0] <= a[1] <= 1 else None,
  'and': lambda a, b: (a[0] & b[0], a[1] & b[1]) if max(a[1], b[1]) <= 1 else None,
  'or': lambda a, b: (a[0] | b[0], a[1] | b[1]) if max(a[1], b[1]) <= 1 else None,
  'eq': _compared(lambda x, y: x == y),
  'ne': _compared(lambda x, y: x != y),
  'lt': _compared(lambda x, y: x < y),
  'le': _compared(lambda x, y: x <= y),
  'gt': _compared(lambda x, y: x > y),
  'ge': _compared(lambda x, y: x >= y),
}
