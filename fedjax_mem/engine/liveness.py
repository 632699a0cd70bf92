"""How much memory a program will take, estimated from its trace: nothing is compiled.

The trace is walked operation by operation, and the bytes of what is still needed are added up; the
most at any place is the estimate. What the compiler does is modelled by a few rules:

* Elementwise operations, broadcasts, slices and transposes are computed where they are read, and
  exist only for an operation that needs them in memory: a product, a loop, a sort, the end.
* An elementwise result takes the place of an operand that nothing else reads, a row is written into
  the array that it is of, and the carry of a loop stays where it is.
* A loop needs, beside its carry, what one pass of it needs.

The rules leave out which operations run when, where a compiler is free, and the gaps between
buffers of different sizes: `PACKING` stands for both.
"""

import collections
from typing import Any

from fedjax_mem.engine import flat as flats
from fedjax_mem.engine.flat import Flat, Op

# Bytes of XLA's buffers by those that the walk counts: on a CPU 1.0 to 1.3 of four works and a
# ResNet, which it was set by; of others 0.9 to 1.65 (`python -m benchmarks.plans` measures it).
PACKING = 1.15
# Computed once, and kept, if several operations read the result.
_COSTLY = flats.named(
  'atan2 cbrt cos erf erf_inv erfc exp exp2 expm1 log log1p logistic pow rsqrt sin sqrt tan tanh'
)
_LONGEST = 40  # operations in one kernel; longer chains are cut


def temporaries(program: Any, shares: list[float], donated: int) -> float:
  """Returns the bytes beside its arguments that a program needs on a device, by the walk alone.

  Results that do not take the place of a donated argument are among them.

  Args:
    program: a trace, a `ClosedJaxpr`.
    shares: part of each argument that a device has.
    donated: how many of the first arguments are donated, each to the result in its place.
  """
  whole = flats.flatten(program, shares)
  return _Walk(whole, carried=dict(zip(whole.outs, whole.ins[:donated], strict=False))).peak()


class _Walk:
  """The walk through one program: its operations, without those within its loops."""

  def __init__(
    self,
    flat: Flat,
    carried: dict[int | None, int],
    stacked: frozenset[int | None] = frozenset(),
    sliced: frozenset[int] = frozenset(),
  ):
    """Looks up who reads what.

    Args:
      flat: the program.
      carried: results -> the arguments in whose place they are.
      stacked: results that are written into an array of those of all passes.
      sliced: arguments that are rows of larger arrays: they are read where those are.
    """
    self.flat, self.sliced = flat, sliced
    self.maker = {x: op for op in flat.ops for x in op.outs}
    self.same = {o: i for op in flat.ops if op.alias for i, o in zip(op.ins, op.outs, strict=False)}
    self.ops = [op for op in flat.ops if not op.alias]
    self.carried = {self.root(o): i for o, i in carried.items() if o is not None}
    self.final = {self.root(x) for x in flat.outs if x is not None}
    self.stacked = {self.root(x) for x in stacked if x is not None}
    self.readers: dict[int, list[str]] = collections.defaultdict(list)
    for op in self.ops:
      for x, role in zip(op.ins, _roles(flat, op), strict=True):
        if x is not None:
          self.readers[self.root(x)].append(role)
    self.formed = {x: self._is_formed(x) for x in flat.ins}
    self.inplace = set(self.carried.values())
    self.reads: dict[int, frozenset[int]] = {}
    self.over: dict[int, frozenset[int]] = {}
    self._form()

  def root(self, value: int | None) -> int:
    """Returns the value whose bytes these are."""
    while value in self.same:
      value = self.same[value]
    assert value is not None
    return value

  def _is_formed(self, value: int) -> bool:
    """Returns whether a value is in memory, and not computed wherever it is read."""
    op, roles = self.maker.get(value), self.readers[value]
    if op is None and value not in self.sliced:
      return True
    if op is not None and op.name not in flats.ELEMENTWISE and op.name not in flats.MOVES:
      return True
    if value in self.final and value not in self.stacked:
      return True
    costly = op is not None and op.name in _COSTLY and len(roles) > 1
    return costly or 'whole' in roles

  def _form(self) -> None:
    """Sets which values are in memory, and which of these each operation reads in the end.

    `over` has those that it reads place by place, which its result may take the place of.
    """
    length: dict[int, int] = {}
    for op in self.ops:
      reads: set[int] = set()
      over: set[int] = set()
      long = 1
      for x, role in zip(op.ins, _roles(self.flat, op), strict=True):
        if x is None:
          continue
        x = self.root(x)
        if self.formed.get(x, True):
          found, direct = frozenset([x]), frozenset([x])
        else:
          found, direct = self.reads.get(x, frozenset([x])), self.over.get(x, frozenset())
          long += length.get(x, 0)
        reads |= found
        over |= direct if role == 'same' else frozenset()
      for x in op.outs:
        self.formed[x] = self._is_formed(x) or long > _LONGEST
        self.reads[x], self.over[x], length[x] = frozenset(reads), frozenset(over), long

  def _uses(self) -> tuple[dict[int, int], dict[int, int]]:
    """Returns the places of the first and the last operation that reads each value in memory."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, op in enumerate(self.ops):
      if any(self.formed[x] for x in op.outs):
        for x in self.reads[op.outs[0]]:
          first.setdefault(x, k)
          last[x] = k
    end = len(self.ops)
    for x in self.final:
      for y in [x] if self.formed.get(x, True) else self.reads.get(x, frozenset([x])):
        first.setdefault(y, end)
        last[y] = end
    return first, last

  def peak(self) -> float:
    """Returns the most bytes at any place, beside the arguments."""
    first, last = self._uses()
    begins, ends = collections.defaultdict(list), collections.defaultdict(list)
    for x in self.sliced:
      if self.formed[x] and x in first:
        begins[first[x]].append(x)
    for x, k in last.items():
      ends[k].append(x)
    held: dict[int, float] = {}
    live = most = 0.0
    for k, op in enumerate(self.ops):
      for x in begins[k]:
        held[x] = self.flat.sizes[x]
        live += held[x]
      if any(self.formed[x] for x in op.outs):
        within, places = _within(self.flat, op)
        for i, x in enumerate(op.outs):
          if self.formed[x]:
            live += self._place(x, k, places.get(i), op, last, held)
        most = max(most, live + within)
      for x in ends[k]:
        live -= held.pop(x, 0.0)
      for x in op.outs:  # made beside others, and read by nothing
        if x not in last:
          live -= held.pop(x, 0.0)
    return most

  def _place(
    self,
    value: int,
    now: int,
    place: int | None,
    op: Op,
    last: dict[int, int],
    held: dict[int, float],
  ) -> float:
    """Puts a result into `held`; returns the bytes that it takes besides those held already."""
    size = self.flat.sizes[value]
    over = self.over[value] if op.name in flats.ELEMENTWISE else frozenset()
    if place is not None:
      over = frozenset([self.root(place)])
    for x in over:
      if last.get(x) == now and held.get(x) == size:
        held[value] = held.pop(x)
        return 0.0
      if place is not None and last.get(x) == now and x in self.inplace:
        self.inplace.add(value)  # it is where the argument was, and so is what is written into it
        return 0.0
    carry = self.carried.get(value)
    if carry is not None:
      gone = last.get(carry, -1)
      if gone < now or (gone == now and carry in over):
        return 0.0
    held[value] = size
    return size


def _roles(flat: Flat, op: Op) -> list[str]:
  """Returns how an operation reads each operand.

  'same': place by place; 'moved': in other places; 'whole': it must be in memory.
  """
  if op.name in flats.ELEMENTWISE:
    shape = flat.shapes[op.outs[0]]
    return ['same' if x is not None and flat.shapes[x] == shape else 'moved' for x in op.ins]
  if op.name in ('gather', 'dynamic_slice'):
    return ['whole'] * len(op.ins)
  if op.name in flats.MOVES or op.name in flats.REDUCES:
    return ['moved'] * len(op.ins)
  if op.name in flats.WRITES:
    return ['whole'] + ['moved'] * (len(op.ins) - 1)
  return ['whole'] * len(op.ins)


def _within(flat: Flat, op: Op) -> tuple[float, dict[int, int | None]]:
  """Returns the bytes that an operation needs within, and which operand each result replaces."""
  if op.name == 'scan':
    first, count = flats.counted(op.params)
    inner = flats.flatten(op.params['jaxpr'], flat.parts(op.ins))
    carry = inner.ins[first : first + count]
    walk = _Walk(
      inner,
      dict(zip(inner.outs[:count], carry, strict=True)),
      frozenset(inner.outs[count:]),
      frozenset(inner.ins[first + count :]),
    )
    return walk.peak(), dict(enumerate(op.ins[first : first + count]))
  if op.name == 'while':
    tests, first = op.params['cond_nconsts'], op.params['body_nconsts']
    inner = flats.flatten(op.params['body_jaxpr'], flat.parts(op.ins[tests:]))
    walk = _Walk(inner, dict(zip(inner.outs, inner.ins[first:], strict=True)))
    return walk.peak(), dict(enumerate(op.ins[tests + first :]))
  if op.name == 'cond':
    most = 0.0
    for branch in op.params['branches']:
      most = max(most, _Walk(flats.flatten(branch, flat.parts(op.ins[1:])), {}).peak())
    return max(0.0, most - sum(flat.sizes[x] for x in op.outs)), {}
  return 0.0, {0: op.ins[0]} if op.name in flats.WRITES else {}
