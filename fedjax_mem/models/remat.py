"""Losses that keep few of their activations, and compute the others again for the gradient.

The backward pass of a deep model needs what its forward pass computed, from its end to its start.
Here the forward pass is cut into segments. Only the values that cross a cut are kept; the inside of
a segment is computed again when its gradient is due. About sqrt(n) segments of n layers need memory
for about 2 sqrt(n) of them, for at most one more forward pass (Chen et al. 2016, arXiv 1604.06174,
section 4). Where to cut is found in the traced loss, by the sizes of its values, so any model will
do. `jax.checkpoint` of a whole loss would save nothing: all of it is computed again at once.

XLA's CPU back end drops the barriers by which `jax.checkpoint` keeps it from finding out that what
is computed again was computed before (jax 0.10). Here the segment begins anew from values that
depend on its gradient in a way that XLA cannot see through, and so cannot begin before it is due.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from fedjax_mem.core import Running, platforms

MOST = 64  # segments that are tried: beyond it the values across cuts outweigh the insides


class _Value(NamedTuple):
  """A value that the traced loss computes.

  Attributes:
    size: bytes.
    born: number of the equation that computes it.
    last: number of the last equation that uses it, or the number of equations for a result.
  """

  size: int
  born: int
  last: int


def remat(loss: Any) -> Any:
  """Returns the loss with values and gradients equal up to rounding, and few activations kept.

  >>> def deep(params, batch, key=None):
  ...   y = batch['x']
  ...   for _ in range(16):
  ...     y = jnp.tanh(y * params)
  ...   return y
  >>> x, saving = {'x': jnp.ones(3)}, remat(deep)
  >>> of = lambda loss: jax.grad(lambda p: loss(p, x).sum())(0.9).item()
  >>> abs(of(saving) - of(deep)) < 1e-6
  True

  Args:
    loss: (params, batch, key=None) -> losses [B], or a `core.Running`. The result can be
      differentiated once, and in reverse mode only.
  """
  if isinstance(loss, Running):
    return Running(loss.evaluated, _segmented(loss.trained), loss.local)
  return _segmented(loss)


def _segmented(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function of pytrees of arrays, in segments."""

  def segmented(*args: Any) -> Any:
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    fixed = len(jax.tree.leaves(args[0]))
    results = _run(closed, _cuts(closed), jax.tree.leaves(args), fixed)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return segmented


def _run(closed: ClosedJaxpr, cuts: Sequence[int], args: Sequence[Any], fixed: int) -> list[Any]:
  """Returns the results of a traced function, segment by segment.

  Args:
    closed: the function.
    cuts: where segments begin, and the number of equations; in order, from 0.
    args: its arguments.
    fixed: how many of them, at the beginning, are parameters.
  """
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values |= dict(zip(jaxpr.invars, args, strict=True))
  later = [x for x in jaxpr.outvars if isinstance(x, Var)]
  ends: list[tuple[list[JaxprEqn], list[Var], list[Var]]] = []
  for start, end in reversed(list(itertools.pairwise(cuts))):
    equations = jaxpr.eqns[start:end]
    made = {x for equation in equations for x in equation.outvars}
    used = [x for equation in equations for x in equation.invars if isinstance(x, Var)]
    taken = list(dict.fromkeys(x for x in used if x not in made))
    ends.append((equations, taken, [x for x in dict.fromkeys(later) if x in made]))
    later = [*later, *taken]
  parameters = {*jaxpr.constvars, *jaxpr.invars[:fixed]}
  for number, (equations, taken, given) in enumerate(reversed(ends), 1):
    segment: Callable[..., Any] = functools.partial(_segment, equations, taken, given)
    # The gradient of the last one is due at once: to compute it again would save nothing.
    if number < len(ends):
      segment = _again(segment, [x not in parameters for x in taken])
    values |= dict(zip(given, segment(*(values[x] for x in taken)), strict=True))
  return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]


def _again(segment: Callable[..., list[Any]], fresh: Sequence[bool]) -> Callable[..., Any]:
  """Returns a segment that keeps its arguments alone, and computes the rest for its gradient.

  Args:
    segment: of arrays.
    fresh: for each argument, whether it is an activation, not a parameter.
  """
  same = jax.custom_vjp(segment)

  def forward(*args: Any) -> tuple[Any, tuple[Any, ...]]:
    return segment(*args), args

  def backward(args: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
    args = _due(args, fresh if any(fresh) else [True] * len(fresh), cotangents)
    moving = [_is_float(x) for x in args]

    def of(*floats: jax.Array) -> list[Any]:
      given = iter(floats)
      return segment(*(next(given) if on else x for on, x in zip(moving, args, strict=True)))

    floats = [x for on, x in zip(moving, args, strict=True) if on]
    found = iter(jax.vjp(of, *floats)[1](cotangents))
    return tuple(next(found) if on else None for on in moving)

  same.defvjp(forward, backward)
  return same


def _due(
  args: tuple[Any, ...], fresh: Sequence[bool], cotangents: list[Any]
) -> tuple[jax.Array, ...]:
  """Returns the arguments of a segment, as values that cannot be known before a cotangent is.

  Args:
    args: the arguments.
    fresh: which of them are to be so.
    cotangents: of the segment's results.
  """
  floats = [x for x in cotangents if _is_float(x) and x.size]
  if not floats:
    return args
  if platforms.current() != 'cpu':
    held: tuple[jax.Array, ...] = lax.optimization_barrier((args, floats))[0]
    return held
  first = max(floats, key=lambda x: x.size).reshape(-1)[0]
  bits = lax.bitcast_convert_type(first, jnp.dtype(f'uint{8 * first.dtype.itemsize}'))
  never = (lax.population_count(bits) >> 7) != 0  # no float has 128 bits

  def one(x: jax.Array) -> jax.Array:
    return lax.select(jnp.broadcast_to(never, x.shape), jnp.zeros_like(x), x)

  return tuple(one(x) if on and _is_float(x) else x for on, x in zip(fresh, args, strict=True))


def _segment(
  equations: Sequence[JaxprEqn], taken: Sequence[Var], given: Sequence[Var], *args: Any
) -> list[Any]:
  """Returns the values `given` that equations compute of the values `args` of `taken`."""
  values: dict[Any, Any] = dict(zip(taken, args, strict=True))
  for equation in equations:
    operands = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
    options = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
      results = equation.primitive.bind(*operands, **options)
    results = results if equation.primitive.multiple_results else [results]
    values |= dict(zip(equation.outvars, results, strict=True))
  return [values[x] for x in given]


def _cuts(closed: ClosedJaxpr) -> tuple[int, ...]:
  """Returns where segments begin, and the number of equations: those that keep the least."""
  jaxpr = closed.jaxpr
  count = len(jaxpr.eqns)
  last = {x: i for i, equation in enumerate(jaxpr.eqns) for x in equation.invars if _is_var(x)}
  last |= dict.fromkeys((x for x in jaxpr.outvars if _is_var(x)), count)
  values = [
    _Value(_bytes(x), i, last.get(x, i))
    for i, equation in enumerate(jaxpr.eqns)
    for x in equation.outvars
  ]
  grown, crossing = [0] * (count + 1), [0] * (count + 1)
  for x in values:
    grown[x.born + 1] += x.size
    for i in range(x.born + 1, min(x.last, count - 1) + 1):
      crossing[i] += x.size
  for i in range(count):
    grown[i + 1] += grown[i]
  most = min(MOST, 2 * math.isqrt(count) + 1)
  tried = {_divided(grown, crossing, parts) for parts in range(1, most + 1)}
  return min(sorted(tried), key=lambda cuts: _held(values, grown, cuts))


def _divided(grown: list[int], crossing: list[int], parts: int) -> tuple[int, ...]:
  """Returns cuts into about equal parts, each where few values cross it.

  Args:
    grown: bytes of all values computed before each equation, and at the end.
    crossing: bytes of the values that a cut before each equation would keep.
    parts: number of segments.
  """
  cuts, share = [0], grown[-1] / parts
  for number in range(1, parts):
    # Up to half of a part to either side, to meet the narrowest place between two layers.
    near = [
      i for i in range(cuts[-1] + 1, len(grown) - 1) if abs(grown[i] - number * share) <= share / 2
    ]
    if near:
      cuts.append(min(near, key=lambda i: (crossing[i], abs(grown[i] - number * share))))
  return (*cuts, len(grown) - 1)


def _held(values: Sequence[_Value], grown: list[int], cuts: Sequence[int]) -> int:
  """Returns the bytes that cross cuts, and those of the largest segment."""
  kept = sum(x.size for x in values if any(x.born < cut <= x.last for cut in cuts[1:-1]))
  return kept + max(grown[end] - grown[start] for start, end in itertools.pairwise(cuts))


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def _is_var(x: Any) -> bool:
  return not isinstance(x, Literal)


def _bytes(x: Any) -> int:
  """Returns the bytes of a value; keys, which have no plain dtype, count as nothing."""
  return math.prod(getattr(x.aval, 'shape', ())) * getattr(x.aval.dtype, 'itemsize', 0)
