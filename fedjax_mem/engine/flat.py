"""A traced program as one list of operations, with the bytes that each value takes on a device.

Calls within a program are written out in place, as the compiler does; loops and branches stay
operations that hold a program. What nothing reads is left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

# Primitives that run a program once, on all their operands -> the parameter that holds it.
CALLS = {
  'jit': 'jaxpr',
  'closed_call': 'call_jaxpr',
  'checkpoint': 'jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
  'shard_map': 'jaxpr',
}


def named(*lines: str) -> frozenset[str]:
  """Returns the names of primitives in lines of text."""
  return frozenset(' '.join(lines).split())


ELEMENTWISE = named(
  'abs add add_any and atan2 bitcast_convert_type cbrt ceil clamp clz complex conj',
  'convert_element_type copy copy_p cos div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag',
  'integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or',
  'population_count pow real reduce_precision rem round rsqrt select_n shift_left',
  'shift_right_arithmetic shift_right_logical sign sin sqrt square sub tan tanh xor',
)
# Values in other places; like elementwise operations they are computed where they are read.
MOVES = named(
  'broadcast_in_dim concatenate dynamic_slice gather iota pad rev slice split stack transpose'
)
# The same bytes under another shape or name.
ALIASES = named(
  'device_put expand_dims optimization_barrier reshape reshard sharding_constraint squeeze'
)
REDUCES = named(
  'argmax argmin pmax pmin psum psum_invariant reduce_and reduce_max reduce_min reduce_or',
  'reduce_prod reduce_sum reduce_xor',
)
# Their first operand becomes the result.
WRITES = named(
  'dynamic_update_slice scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub'
)


class Op(NamedTuple):
  """An operation.

  Attributes:
    name: of its primitive.
    ins: numbers of the values that it reads; None: a constant.
    outs: numbers of the values that it makes.
    params: of its equation.
  """

  name: str
  ins: tuple[int | None, ...]
  outs: tuple[int, ...]
  params: dict[str, Any]

  @property
  def alias(self) -> bool:
    """Whether its results are its operands."""
    return self.name in ALIASES and all(x is not None for x in self.ins[: len(self.outs)])


@dataclasses.dataclass
class Flat:
  """A program.

  Attributes:
    ops: its operations, in the order of the trace.
    sizes: bytes of each value on a device.
    shapes: of each value, that of all devices together where they share it.
    shares: part of each value that a device has, in (0, 1].
    ins: numbers of its arguments.
    outs: numbers of its results; None: a constant.
  """

  ops: list[Op] = dataclasses.field(default_factory=list)
  sizes: list[float] = dataclasses.field(default_factory=list)
  shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
  shares: list[float] = dataclasses.field(default_factory=list)
  ins: list[int] = dataclasses.field(default_factory=list)
  outs: list[int | None] = dataclasses.field(default_factory=list)

  def value(self, aval: Any, share: float = 1.0) -> int:
    """Returns the number of a new value."""
    self.sizes.append(share * nbytes(aval))
    self.shapes.append(tuple(getattr(aval, 'shape', ())))
    self.shares.append(share)
    return len(self.sizes) - 1

  def parts(self, values: Sequence[int | None]) -> list[float]:
    """Returns the part of each value that a device has."""
    return [1.0 if x is None else self.shares[x] for x in values]


def nbytes(aval: Any) -> int:
  """Returns the bytes of a value of this shape and dtype; a key has two words."""
  dtype = getattr(aval, 'dtype', None)
  if dtype is None:  # a token
    return 0
  words = 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
  return int(aval.size) * int(words)


def flatten(program: Any, shares: Sequence[float] | None = None) -> Flat:
  """Returns a program as a list of operations.

  Args:
    program: a trace, a `ClosedJaxpr`.
    shares: part of each argument that a device has; None: the whole of all.
  """
  flat = Flat()
  variables = program.jaxpr.invars
  given = [1.0] * len(variables) if shares is None else shares
  flat.ins = [flat.value(x.aval, share) for x, share in zip(variables, given, strict=True)]
  flat.outs = _write_out(flat, program, flat.ins)
  used = {x for x in flat.outs if x is not None}
  kept = []
  for op in reversed(flat.ops):
    if used.intersection(op.outs):
      kept.append(op)
      used.update(x for x in op.ins if x is not None)
  flat.ops = kept[::-1]
  return flat


def _write_out(flat: Flat, program: Any, given: Sequence[int | None]) -> list[int | None]:
  """Adds the operations of a program to those of `flat`; returns the numbers of its results."""
  jaxpr = program.jaxpr
  names: dict[Any, int | None] = {x: flat.value(x.aval) for x in jaxpr.constvars}
  names.update(zip(jaxpr.invars, given, strict=True))

  def read(atom: Any) -> int | None:
    return None if isinstance(atom, jex.Literal) else names[atom]

  for eqn in jaxpr.eqns:
    ins = [read(x) for x in eqn.invars]
    name = eqn.primitive.name
    if name in CALLS:
      made = _call(flat, eqn, ins)
    else:
      share = _share(flat, eqn, ins)
      made = [flat.value(x.aval, share[i]) for i, x in enumerate(eqn.outvars)]
      flat.ops.append(Op(name, tuple(ins), tuple(made), eqn.params))  # type: ignore[arg-type]
    names.update(zip(eqn.outvars, made, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _call(flat: Flat, eqn: Any, ins: list[int | None]) -> list[int | None]:
  """Writes out a call; within a `shard_map` shapes are those of one device."""
  name = eqn.primitive.name
  inner = eqn.params[CALLS[name]]
  inner = inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())
  if name != 'shard_map':
    return _write_out(flat, inner, ins)
  given = [
    None if x is None else _seen(flat, x, v.aval)
    for x, v in zip(ins, inner.jaxpr.invars, strict=True)
  ]
  made: list[int | None] = []
  for x, v in zip(_write_out(flat, inner, given), eqn.outvars, strict=True):
    if x is None:
      made.append(None)
      continue
    whole = flat.value(v.aval, min(1.0, flat.sizes[x] / max(1, nbytes(v.aval))))
    flat.ops.append(Op('reshape', (x,), (whole,), {}))
    made.append(whole)
  return made


def _seen(flat: Flat, outside: int, aval: Any) -> int:
  """Returns the value within a `shard_map` of one outside, of which a device needs its part."""
  inside = flat.value(aval)
  flat.sizes[outside] = min(flat.sizes[outside], flat.sizes[inside])
  flat.ops.append(Op('reshape', (outside,), (inside,), {}))
  return inside


def counted(params: Mapping[str, Any]) -> tuple[int, int]:
  """Returns how many operands of a scan it only reads, and how many it carries.

  Args:
    params: those of the operation.
  """
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  read, carried, _ = params['ft_in'].unpack()  # jax 0.12: trees in the place of numbers
  return len(read), len(carried)


def _share(flat: Flat, eqn: Any, ins: list[int | None]) -> list[float]:
  """Returns the part of each result of an operation that a device has."""
  name, params = eqn.primitive.name, eqn.params
  if name == 'while':
    carry = ins[params['cond_nconsts'] + params['body_nconsts'] :]
    return flat.parts(carry)
  if name == 'scan':
    first, count = counted(params)
    carry = ins[first : first + count]
    return flat.parts(carry) + [1.0] * (len(eqn.outvars) - count)
  if name == 'cond' or not ins:
    return [1.0] * len(eqn.outvars)
  # What has as many rows as an operand that is divided by rows is divided as well.
  parts = [
    (flat.shapes[x][0], flat.shares[x])
    for x in ins
    if x is not None and flat.shapes[x] and flat.shares[x] < 1
  ]
  return [
    min((s for rows, s in parts if v.aval.shape[:1] == (rows,)), default=1.0) for v in eqn.outvars
  ]
