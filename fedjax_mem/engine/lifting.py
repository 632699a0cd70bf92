"""Programs that differ in numbers alone, as one program that takes these numbers as arguments.

A learning rate, a clip norm or a noise multiplier is a Python number while a round is traced, so
factories check it and compute with it as usual. In the trace it is a constant. `read` takes a trace
apart into its structure and its constants. Traces of equal structure are one program, and the
constants in which they differ become its arguments (`lifted`): whatever a method computes from its
settings, each of them has the numbers that it would have alone, bit for bit. No list says which
settings can be lifted: one that changes more than numbers changes the structure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from fedjax_mem.engine.flat import counted

# Primitives that run a program once, on all their operands -> the parameter that holds it. What
# the custom ones hold besides says how to differentiate it, which is done by now.
_CUSTOM = {'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}
_CALLS = {'jit': 'jaxpr', 'closed_call': 'call_jaxpr', 'checkpoint': 'jaxpr', **_CUSTOM}
_LOOPS = ('scan', 'while', 'cond')
# On one device they are the identity.
_PLACING = ('reshard', 'sharding_constraint', 'device_put')


class _Step(NamedTuple):
  """An equation, the places of its constant operands (-1: none), and the programs within it."""

  eqn: Any
  places: list[int]
  within: dict[str, list['_Node']]


class _Node(NamedTuple):
  """A program: its variables, its constants and their places, its steps, and its results."""

  jaxpr: Any
  consts: list[tuple[Any, int]]
  steps: list[_Step]
  places: list[int]


class Program(NamedTuple):
  """A traced function, taken apart.

  Attributes:
    structure: the trace without its constants; equal structures are equal programs.
    numbers: the constants, in the order of the walk.
    movable: for each of them, whether it may become an argument.
    node: the trace with the places of its constants.
  """

  structure: tuple[Any, ...]
  numbers: tuple[Any, ...]
  movable: tuple[bool, ...]
  node: _Node


def read(traced: jex.ClosedJaxpr) -> Program:
  """Returns a trace, as from `jax.make_jaxpr`, taken apart."""
  reader = _Reader()
  structure, node = reader.program(traced, movable=True)
  return Program(structure, tuple(reader.numbers), tuple(reader.movable), node)


class _Reader:
  """Walks a trace and numbers its constants; the order depends on the structure alone."""

  def __init__(self) -> None:
    self.numbers: list[Any] = []
    self.movable: list[bool] = []

  def program(self, traced: Any, movable: bool) -> tuple[tuple[Any, ...], _Node]:
    closed = isinstance(traced, jex.ClosedJaxpr)
    jaxpr, consts = (traced.jaxpr, traced.consts) if closed else (traced, ())
    names: dict[Any, int] = {}
    held = [(x, self._constant(x, movable)) for x in consts]
    inputs = [_declare(names, x) for x in (jaxpr.constvars, jaxpr.invars)]
    steps, parts = [], []
    for eqn in jaxpr.eqns:
      part, step = self._step(names, eqn, movable)
      parts.append(part)
      steps.append(step)
    results, places = self._atoms(names, jaxpr.outvars, movable)
    return (*inputs, tuple(parts), results), _Node(jaxpr, held, steps, places)

  def _constant(self, value: Any, movable: bool) -> int:
    self.numbers.append(value)
    self.movable.append(movable)
    return len(self.numbers) - 1

  def _atoms(
    self, names: dict[Any, int], atoms: Sequence[Any], movable: bool
  ) -> tuple[tuple[Any, ...], list[int]]:
    found: list[Any] = []
    places = []
    for x in atoms:
      constant = isinstance(x, jex.Literal)
      found.append(_kind(x.aval) if constant else names[x])
      places.append(self._constant(_literal(x), movable) if constant else -1)
    return tuple(found), places

  def _step(self, names: dict[Any, int], eqn: Any, movable: bool) -> tuple[tuple[Any, ...], _Step]:
    name = eqn.primitive.name
    operands, places = self._atoms(names, eqn.invars, movable)
    movable = movable and (name in _CALLS or name in _LOOPS)
    within: dict[str, list[_Node]] = {}
    compared = [_CUSTOM[name]] if name in _CUSTOM else sorted(eqn.params)
    params = [
      (key, self._param(eqn.params[key], movable, within.setdefault(key, []))) for key in compared
    ]
    part = (name, operands, tuple(params), _declare(names, eqn.outvars))
    return part, _Step(eqn, places, within)

  def _param(self, value: Any, movable: bool, within: list[_Node]) -> Any:
    """Returns what two parameters are compared by; programs in them are added to `within`."""
    if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr):
      structure, node = self.program(value, movable)
      within.append(node)
      return structure
    if isinstance(value, tuple | list):
      return tuple(self._param(x, movable, within) for x in value)
    if isinstance(value, np.ndarray | jax.Array):
      self._constant(value, False)
      return _kind(value)
    value = getattr(value, 'rule', value)  # custom_vmap wraps its rule anew in every trace
    try:
      hash(value)
    except TypeError:
      return object()  # nothing is known of it: equal to no other
    return value


def _declare(names: dict[Any, int], variables: Sequence[Any]) -> tuple[Any, ...]:
  """Numbers the variables of a program, and returns their kinds."""
  for x in variables:
    names[x] = len(names)
  return tuple(_kind(x.aval) for x in variables)


def _kind(x: Any) -> tuple[Any, ...]:
  return getattr(x, 'shape', None), getattr(x, 'dtype', type(x)), getattr(x, 'weak_type', False)


def _literal(x: Any) -> Any:
  known = hasattr(x.aval, 'dtype') and not jnp.issubdtype(x.aval.dtype, jax.dtypes.extended)
  return np.asarray(x.val, x.aval.dtype) if known else x.val


def differing(programs: Sequence[Program]) -> list[int]:
  """Returns the places of the constants in which programs of one structure differ."""
  return [
    place
    for place, (first, *others) in enumerate(zip(*(x.numbers for x in programs), strict=True))
    if any(x is not first and not _same(first, x) for x in others)
  ]


def _same(a: Any, b: Any) -> bool:
  """Returns whether two constants have the same bits."""
  a, b = _plain(a), _plain(b)
  same: bool = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  return same


def _plain(x: Any) -> np.ndarray:
  if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return np.asarray(x)


def stacked(programs: Sequence[Program], places: Sequence[int]) -> list[jax.Array]:
  """Returns the constants of L programs at these places, [L, ...] each."""
  return [jnp.stack([jnp.asarray(x.numbers[place]) for x in programs]) for place in places]


def lifted(program: Program, places: Sequence[int]) -> Callable[..., list[Any]]:
  """Returns (constants, arguments) -> results, with other constants at some places.

  Args:
    program: of which `movable` is true at these places.
    places: of the constants that the function takes, as `differing` returns them.
  """

  def run(constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    return _Runner(dict(zip(places, constants, strict=True))).run(program.node, arguments)

  return run


class _Runner:
  """Runs a program again, with other constants at some places."""

  def __init__(self, given: Mapping[int, Any]):
    self._given = given

  def run(self, node: _Node, arguments: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = dict(zip(node.jaxpr.invars, arguments, strict=True))
    held = [self._given.get(place, x) for x, place in node.consts]
    known.update(zip(node.jaxpr.constvars, held, strict=True))
    for step in node.steps:
      operands = self._atoms(known, step.eqn.invars, step.places)
      known.update(zip(step.eqn.outvars, self._step(step, operands), strict=True))
    return self._atoms(known, node.jaxpr.outvars, node.places)

  def _atoms(self, known: Mapping[Any, Any], atoms: Sequence[Any], places: list[int]) -> list[Any]:
    found = []
    for x, place in zip(atoms, places, strict=True):
      held = x.val if isinstance(x, jex.Literal) else known[x]
      found.append(self._given.get(place, held))
    return found

  def _step(self, step: _Step, operands: list[Any]) -> Sequence[Any]:
    eqn, name = step.eqn, step.eqn.primitive.name
    if name in _PLACING:
      return operands
    # Built again, since what is within may have other constants, or be on other devices.
    if name in _CALLS:
      return self.run(step.within[_CALLS[name]][0], operands)
    if name in _LOOPS:
      rebuilt: Sequence[Any] = getattr(self, f'_{name}')(step, operands)
      return rebuilt
    primitive: Any = eqn.primitive
    params = primitive.get_bind_params(eqn.params)
    where = [key for key, x in params.items() if isinstance(x, jax.sharding.Sharding)]
    results = primitive.bind(*operands, **params | dict.fromkeys(where))
    made: Sequence[Any] = results if eqn.primitive.multiple_results else [results]
    return made

  def _scan(self, step: _Step, operands: list[Any]) -> Sequence[Any]:
    params, (body,) = step.eqn.params, step.within['jaxpr']
    kept, carried = counted(params)

    def one(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
      results = self.run(body, [*operands[:kept], *carry, *row])
      return results[:carried], results[carried:]

    start, rows = operands[kept : kept + carried], operands[kept + carried :]
    how = {key: params[key] for key in ('length', 'reverse', 'unroll')}
    carry, made = jax.lax.scan(one, _typed(body, kept, start), rows, **how)
    return [*carry, *made]

  def _while(self, step: _Step, operands: list[Any]) -> Sequence[Any]:
    params = step.eqn.params
    (test,), (body,) = step.within['cond_jaxpr'], step.within['body_jaxpr']
    asked, kept = params['cond_nconsts'], params['body_nconsts']
    first, second, start = (
      operands[:asked],
      operands[asked : asked + kept],
      operands[asked + kept :],
    )
    ended: list[Any] = jax.lax.while_loop(
      lambda carry: self.run(test, [*first, *carry])[0],
      lambda carry: self.run(body, [*second, *carry]),
      _typed(body, kept, start),
    )
    return ended

  def _cond(self, step: _Step, operands: list[Any]) -> Sequence[Any]:
    ways = [lambda *x, node=node: self.run(node, x) for node in step.within['branches']]
    results: list[Any] = jax.lax.switch(operands[0], ways, *operands[1:])
    return results


def _typed(body: _Node, kept: int, start: Sequence[Any]) -> list[Any]:
  """Returns the first carry of a loop in the dtypes of its body, which literals may lack."""
  wanted = body.jaxpr.invars[kept : kept + len(start)]
  return [
    x if hasattr(x, 'dtype') else jnp.asarray(x, v.aval.dtype)
    for x, v in zip(start, wanted, strict=True)
  ]
