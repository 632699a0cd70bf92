"""Functions of a user's own, with their convolutions and max pooling replaced by ours on a CPU.

XLA's CPU back end runs a convolution inside a loop, or with weights of each client, by a naive loop
in one thread, and so it does the derivative of max pooling. `fast_convolutions` traces a function
to a jaxpr, puts `conv.conv_general_dilated` and `pool.max_windows` where the slow primitives stand,
and evaluates the result: it is then differentiated, batched and compiled like the original. Only
tracing takes longer; nothing of it is left in the compiled program.

The replacement has the shapes and the dtype of what it replaces, as a call of a compiled function.
So the rest of the jaxpr stays as it is, and so does each loop, branch or call around it: only the
jaxpr that it holds is another one.
"""

import functools
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from fedjax_mem.core import platforms
from fedjax_mem.kernels.nn import conv, pool

# What holds jaxprs of the same meaning in its parameters: they may be replaced one for one.
_HOLDERS = frozenset({
  primitives.jit_p, primitives.closed_call_p, primitives.call_p, primitives.remat_p,
  primitives.scan_p, primitives.while_p, primitives.cond_p, primitives.custom_jvp_call_p,
  primitives.custom_vjp_call_p,
})  # fmt: skip
# What is left for the CPU's naive loops: a convolution, and the derivative of max pooling.
_SLOW = frozenset({primitives.conv_general_dilated_p, primitives.select_and_scatter_add_p})

_LARGEST = 32  # side of a pooling window

# What `fast_convolutions` or `as_it_is` returned -> what it was made of. Not an attribute, which
# `functools.wraps` would copy to functions that are yet to be rewritten.
_GIVEN: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = (
  weakref.WeakKeyDictionary()
)

# Each jaxpr or equation (without its operands) that was seen -> what takes its place.
_Seen = dict[Any, Any]


def fast_convolutions(
  function: Callable[..., Any], *, platform: str | None = None
) -> Callable[..., Any]:
  """Returns the function with fast convolutions and max pooling on a CPU, and equal values.

  Values and gradients are equal up to rounding. Dtypes stay; floats of 16 bits are multiplied in
  float32, so `precision` does not matter. On another platform than a CPU the function is called as
  it is. For a loss of your own in a method of your own: the models of `fedjax_mem.models`, and the
  losses given to `fedjax_mem.stages.algorithm`, are rewritten already.

  Convolutions are found inside jit, remat, scan, while, cond and functions with a derivative of
  their own, whose rule is kept. Left as they are: integers and complex numbers, batch groups, and
  pooling with dilation or large windows. What was replaced can be differentiated in reverse mode
  only: for `jax.jvp` take `__wrapped__` of the result, which is the function that was given, or
  the model from `fedjax_mem.models.as_it_is`.

  >>> blur = lambda x: jax.lax.conv(x, jnp.ones((1, 1, 3, 3)), (1, 1), 'VALID')
  >>> fast_convolutions(blur)(jnp.ones((1, 1, 3, 4))).tolist()
  [[[[9.0, 9.0]]]]

  Args:
    function: of pytrees, whose arrays are traced; all else in its arguments is static.
    platform: 'cpu' to rewrite, another name to leave all as it is; None: the one that the function
      is traced for (`core.platforms`).
  """
  if _given(function) is not None:
    return function

  @functools.wraps(function)
  def rewritten(*args: Any, **kwargs: Any) -> Any:
    if (platform or platforms.current()) != 'cpu':
      return function(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    traced = [_is_array(x) for x in leaves]

    def flat(*arrays: jax.Array) -> Any:
      given = iter(arrays)
      whole = [next(given) if on else x for on, x in zip(traced, leaves, strict=True)]
      args, kwargs = jax.tree.unflatten(structure, whole)
      return function(*args, **kwargs)

    arrays = [jnp.asarray(x) for on, x in zip(traced, leaves, strict=True) if on]
    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*arrays)
    values = core.jaxpr_as_fun(_jaxpr(closed, {}))(*arrays)
    return jax.tree.unflatten(jax.tree.structure(shapes), values)

  _GIVEN[rewritten] = function
  return rewritten


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function as it was given, which `fast_convolutions` will not rewrite, either."""
  plain = _given(function) or function

  @functools.wraps(plain)
  def same(*args: Any, **kwargs: Any) -> Any:
    return plain(*args, **kwargs)

  _GIVEN[same] = plain
  return same


def _is_array(x: Any) -> bool:
  """Returns whether JAX can trace x as an array: NumPy's of text or objects are static."""
  plain = isinstance(x, np.ndarray | np.generic) and x.dtype.kind in 'biufcV'
  return isinstance(x, jax.Array) or plain


def _given(function: Callable[..., Any]) -> Callable[..., Any] | None:
  """Returns the function that one of ours was made of, or None."""
  return _GIVEN.get(function) if isinstance(function, types.FunctionType) else None


def warn_if_slow(jaxpr: core.ClosedJaxpr, platform: str) -> None:
  """Warns, once for each kind, of convolutions in a program that a CPU runs by naive loops.

  Args:
    jaxpr: of the program.
    platform: that the program is compiled for.
  """
  if platform != 'cpu':
    return
  for equation in _equations(jaxpr.jaxpr):
    if equation.primitive in _SLOW:
      shapes = [v.aval.str_short() for v in equation.invars]
      _warn(equation.primitive.name, ', '.join(shapes))
      return


@functools.cache
def _warn(name: str, shapes: str) -> None:
  warnings.warn(
    f'the round holds lax.{name} of {shapes}, which XLA runs over 10 to 100 times slower than '
    'matrix products in a loop on a CPU: pass the loss through '
    'fedjax_mem.models.fast_convolutions, and give it floats without batch groups.',
    stacklevel=2,
  )


def _inner(value: Any) -> Iterator[core.Jaxpr]:
  """Yields the jaxprs in a parameter of an equation."""
  for x in value if isinstance(value, tuple | list) else (value,):
    if isinstance(x, core.ClosedJaxpr):
      yield x.jaxpr
    elif isinstance(x, core.Jaxpr):
      yield x


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Yields the equations of a jaxpr and of all that it holds, whatever holds them."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in _inner(value):
        yield from _equations(inner)


def _jaxpr(jaxpr: Any, seen: _Seen) -> Any:
  """Returns a jaxpr, closed or not, with its slow primitives replaced; itself if it has none."""
  # Newer versions of JAX have one class for both, which is then its own `jaxpr`.
  if isinstance(jaxpr, core.ClosedJaxpr) and jaxpr.jaxpr is not jaxpr:
    inner = _jaxpr(jaxpr.jaxpr, seen)
    return jaxpr if inner is jaxpr.jaxpr else jaxpr.replace(jaxpr=inner)
  if jaxpr not in seen:  # What is called twice stays one function, compiled once.
    equations = [_equation(equation, seen) for equation in jaxpr.eqns]
    same = all(a is b for a, b in zip(equations, jaxpr.eqns, strict=True))
    seen[jaxpr] = jaxpr if same else jaxpr.replace(eqns=equations)
  return seen[jaxpr]


def _equation(equation: core.JaxprEqn, seen: _Seen) -> core.JaxprEqn:
  """Returns an equation with its slow primitives replaced; itself if it has none."""
  if equation.primitive in _HOLDERS:
    params = {name: _parameter(value, seen) for name, value in equation.params.items()}
    same = all(params[name] is value for name, value in equation.params.items())
    return equation if same else equation.replace(params=params)
  make = _KERNELS.get(equation.primitive)
  kernel = None if make is None else make(equation)
  return equation if kernel is None else _call(kernel, equation, seen)


def _parameter(value: Any, seen: _Seen) -> Any:
  """Returns a parameter of an equation with the jaxprs in it rewritten; itself if none was."""
  if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
    return _jaxpr(value, seen)
  if isinstance(value, tuple):  # branches
    parts = tuple(_parameter(x, seen) for x in value)
    return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
  return value


def _call(kernel: Callable[..., Any], equation: core.JaxprEqn, seen: _Seen) -> core.JaxprEqn:
  """Returns the equation with a call of a compiled kernel in the place of its primitive."""
  like = tuple(v.aval for v in equation.invars)
  known = equation.primitive, like, tuple(sorted((k, str(v)) for k, v in equation.params.items()))
  if known not in seen:
    kernel.__name__ = equation.primitive.name
    (seen[known],) = jax.make_jaxpr(jax.jit(kernel))(*like).jaxpr.eqns
  call = seen[known]
  parts = {'primitive': call.primitive, 'params': call.params, 'effects': call.effects}
  return cast(core.JaxprEqn, equation.replace(**parts))


def _usual(equation: core.JaxprEqn) -> bool:
  """Returns whether all operands and the result are floats of at least 16 bits, none empty."""
  avals: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
  floats = all(jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1 for x in avals)
  return floats and all(x.size for x in avals)


def _convolution(equation: core.JaxprEqn) -> Callable[..., jax.Array] | None:
  """Returns the convolution of an equation by our kernel; None if that cannot take it."""
  params, result = equation.params, cast(jax.core.ShapedArray, equation.outvars[0].aval)
  if not _usual(equation) or params['batch_group_count'] != 1 or not params['window_strides']:
    return None

  def convolution(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    wide = max(lhs.dtype, rhs.dtype, jnp.dtype(jnp.float32), key=lambda kind: kind.itemsize)
    y = conv.conv_general_dilated(
      lhs.astype(wide),
      rhs.astype(wide),
      params['window_strides'],
      params['padding'],
      params['lhs_dilation'],
      params['rhs_dilation'],
      params['dimension_numbers'],
      params['feature_group_count'],
    )
    return y.astype(result.dtype)

  return convolution


def _max_pooling(equation: core.JaxprEqn) -> Callable[..., jax.Array] | None:
  """Returns the max pooling of an equation by our kernel; None if that cannot take it."""
  params = equation.params
  names = ('window_dimensions', 'window_strides', 'padding')
  window, strides, padding = (params[name] for name in names)
  dilated = {*params['base_dilation'], *params['window_dilation']} != {1}
  # A slice for each place in the window: too many for a maximum over a whole sequence.
  if not _usual(equation) or dilated or max(window) > _LARGEST:
    return None
  return lambda x: pool.max_windows(x, window, strides, padding)


_KERNELS: dict[Any, Callable[[core.JaxprEqn], Callable[..., jax.Array] | None]] = {
  primitives.conv_general_dilated_p: _convolution,
  primitives.reduce_window_max_p: _max_pooling,
}
