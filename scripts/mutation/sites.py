"""What can be changed in a source file to make a mutant of it.

Nothing is changed in docstrings, f-strings, `raise` statements, annotations, imports, decorators,
`__all__`, `if TYPE_CHECKING`, nor in arguments that no test could see (`UNSEEN`). A change replaces
characters and nothing else, so the formatting of the file stays.
"""

import ast
import io
import itertools
import tokenize
from collections.abc import Iterable
from typing import Any, NamedTuple

SWAPS = {
  **{'<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '=='},
  **{'is': 'is not', 'is not': 'is', 'in': 'not in', 'not in': 'in', 'and': 'or', 'or': 'and'},
  **{'+': '-', '-': '+', '*': '/', '/': '*', '//': '*', '%': '*', '**': '*', '&': '|', '|': '&'},
  **{'^': '&', '<<': '>>', '>>': '<<', '+=': '-=', '-=': '+=', '*=': '/=', '/=': '*='},
}
NAMES = {'min': 'max', 'any': 'all', 'minimum': 'maximum'}
NAMES |= {new: old for old, new in NAMES.items()}
# Two arguments may change places without a difference, or only with a TypeError.
SYMMETRIC = {'isinstance', 'issubclass', 'cast', 'getattr', 'hasattr', 'setattr', 'allclose'}
SYMMETRIC |= {'array_equal', 'isclose', 'add', 'multiply', 'gcd', 'hypot', 'logical_and'}
SYMMETRIC |= {'logical_or', 'logical_xor', *NAMES}
# `zip(strict=...)` guards against mistakes in this code; the others cost memory or time only.
UNSEEN = {'strict', 'donate_argnums', 'donate_argnames', 'unroll', 'maxsize'}
EQUALITIES = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
SIMPLE = (ast.IfExp, ast.Lambda, ast.NamedExpr)  # they need parentheses in most places


class Site(NamedTuple):
  """What can be changed: `source[start:end]` to `new`.

  Attributes:
    kind: what sort of change.
    start: offset in characters.
    end: likewise.
    new: the text to put there.
    function: qualified name of the innermost function or class, '' for the module.
    at_import: whether it is outside of all functions, so runs when the module is imported.
    statement: first and last line of the statement, without the body if it has one.
  """

  kind: str
  start: int
  end: int
  new: str
  function: str
  at_import: bool
  statement: tuple[int, int]


class _Finder(ast.NodeVisitor):
  """Collects the sites of one source."""

  def __init__(self, source: str):
    self.source = source
    self.found: list[Site] = []
    self._lines = source.split('\n')
    self._starts = [0, *itertools.accumulate(len(x) + 1 for x in self._lines)]
    self._names: list[str] = []
    self._depth = 0  # of functions and lambdas
    self._statement = (1, 1)
    self._index = False
    self._tokens = [
      (self._starts[t.start[0] - 1] + t.start[1], t.string)
      for t in tokenize.generate_tokens(io.StringIO(source).readline)
      if t.type in (tokenize.OP, tokenize.NAME)
    ]

  def _offset(self, line: int, column: int) -> int:
    """Returns the offset in characters; columns of `ast` count bytes of UTF-8."""
    return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

  def _span(self, node: ast.AST) -> tuple[int, int]:
    n: Any = node
    return self._offset(n.lineno, n.col_offset), self._offset(n.end_lineno, n.end_col_offset)

  def _text(self, node: ast.AST) -> str:
    start, end = self._span(node)
    return self.source[start:end]

  def _add(self, kind: str, start: int, end: int, new: str) -> None:
    if self.source[start:end] != new:
      self.found.append(
        Site(kind, start, end, new, '.'.join(self._names), not self._depth, self._statement)
      )

  def _operator(self, kind: str, after: int, before: int) -> None:
    """Swaps the operator between two operands; parentheses may stand around it."""
    between = [(at, s) for at, s in self._tokens if after <= at < before and s not in '()']
    name = ' '.join(s for _, s in between)
    if name in SWAPS:
      start = between[0][0]
      self._add(kind, start, between[-1][0] + len(between[-1][1]), SWAPS[name])

  def _inside(self, name: str, deeper: int, body: Iterable[ast.AST]) -> None:
    self._names.append(name)
    self._depth += deeper
    for node in body:
      self.visit(node)
    self._depth -= deeper
    self._names.pop()

  def _negate(self, test: ast.expr) -> None:
    """Negates a condition, unless another mutant does the same."""
    equal = isinstance(test, ast.Compare) and isinstance(test.ops[0], EQUALITIES)
    if not isinstance(test, ast.Constant | ast.UnaryOp) and not equal:
      self._add('negate', *self._span(test), f'not ({self._text(test)})')

  def visit(self, node: ast.AST) -> None:
    """Visits a node and keeps track of the statement."""
    outer = self._statement
    if isinstance(node, ast.stmt):
      body = getattr(node, 'body', None)
      last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
      self._statement = (node.lineno, last or node.lineno)
    super().visit(node)
    self._statement = outer

  def _skip(self, node: ast.AST) -> None:
    """Changes nothing here."""

  visit_Import = visit_ImportFrom = visit_Raise = visit_JoinedStr = _skip

  def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    for default in filter(None, (*node.args.defaults, *node.args.kw_defaults)):
      self.visit(default)
    self._inside(node.name, 1, node.body)

  visit_AsyncFunctionDef = visit_FunctionDef

  def visit_ClassDef(self, node: ast.ClassDef) -> None:
    self._inside(node.name, 0, node.body)

  def visit_Lambda(self, node: ast.Lambda) -> None:
    self._depth += 1
    self.visit(node.body)
    self._depth -= 1

  def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
    if node.value is not None:
      self.visit(node.value)

  def visit_Assign(self, node: ast.Assign) -> None:
    if not any(isinstance(t, ast.Name) and t.id.startswith('__') for t in node.targets):
      self.generic_visit(node)

  def visit_If(self, node: ast.If) -> None:
    if 'TYPE_CHECKING' in self._text(node.test) or '__name__' in self._text(node.test):
      return
    self._negate(node.test)
    self.generic_visit(node)

  def visit_While(self, node: ast.While) -> None:
    self._negate(node.test)
    self.generic_visit(node)

  def visit_comprehension(self, node: ast.comprehension) -> None:
    for test in node.ifs:
      self._negate(test)
    self.generic_visit(node)

  def visit_IfExp(self, node: ast.IfExp) -> None:
    start, end = self._span(node)
    (one, two), (three, four) = self._span(node.body), self._span(node.orelse)
    text = self.source
    body, orelse = text[one:two], text[three:four]
    if isinstance(node.orelse, SIMPLE):
      orelse = f'({orelse})'
    new = text[start:one] + orelse + text[two:three] + body + text[four:end]
    self._add('branches', start, end, new)
    self.generic_visit(node)

  def visit_Compare(self, node: ast.Compare) -> None:
    for left, right in itertools.pairwise((node.left, *node.comparators)):
      self._operator('comparison', self._span(left)[1], self._span(right)[0])
    self.generic_visit(node)

  def visit_BoolOp(self, node: ast.BoolOp) -> None:
    for left, right in itertools.pairwise(node.values):
      self._operator('and/or', self._span(left)[1], self._span(right)[0])
    self.generic_visit(node)

  def visit_BinOp(self, node: ast.BinOp) -> None:
    union = isinstance(node.op, ast.BitOr) and not self._depth  # of types
    if not union and not _no_number(node.left) and not _no_number(node.right):
      self._operator('arithmetic', self._span(node.left)[1], self._span(node.right)[0])
    self.generic_visit(node)

  def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
    if isinstance(node.op, ast.Not):
      start, end = self._span(node)
      self._add('not removed', start, end, self.source[start + len('not') : end].lstrip())
    self.generic_visit(node)

  def visit_AugAssign(self, node: ast.AugAssign) -> None:
    if not _no_number(node.value):
      self._operator('arithmetic', self._span(node.target)[1], self._span(node.value)[0])
    self._add('deleted', *self._span(node), 'pass')
    self.generic_visit(node)

  def visit_Expr(self, node: ast.Expr) -> None:
    if isinstance(node.value, ast.Call):
      self._add('deleted', *self._span(node), 'pass')
    self.generic_visit(node)

  def visit_keyword(self, node: ast.keyword) -> None:
    if node.arg not in UNSEEN:
      self.visit(node.value)

  def visit_Subscript(self, node: ast.Subscript) -> None:
    self.visit(node.value)
    outer, self._index = self._index, True
    self.visit(node.slice)
    self._index = outer

  def visit_Call(self, node: ast.Call) -> None:
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    end = self._span(node.func)[1]
    if name in NAMES:
      kind = 'any/all' if name in ('any', 'all') else 'min/max'
      self._add(kind, end - len(name), end, NAMES[name])
    for one, two in itertools.pairwise(node.args if name not in SYMMETRIC else ()):
      (start, middle), (right, last) = self._span(one), self._span(two)
      if not any(isinstance(x, ast.Starred) or _no_number(x) for x in (one, two)):
        new = self._text(two) + self.source[middle:right] + self._text(one)
        self._add('arguments', start, last, new)
    outer, self._index = self._index, False
    for child in (node.func, *node.args[: 1 if name == 'isinstance' else None], *node.keywords):
      self.visit(child)
    self._index = outer

  def visit_Constant(self, node: ast.Constant) -> None:
    value = node.value
    if isinstance(value, bool):
      self._add('boolean', *self._span(node), str(not value))
    elif isinstance(value, int):
      new = hex(value + 1) if self._text(node)[:2].lower() == '0x' else str(value + 1)
      self._add('index' if self._index else 'constant', *self._span(node), new)
    elif isinstance(value, float):
      self._add('constant', *self._span(node), repr(value * 2 if value else 1.0))


def _no_number(node: ast.expr) -> bool:
  """Whether an operand surely is text, a list, a dict or a type, where only a TypeError results."""
  if isinstance(node, ast.BinOp):
    return _no_number(node.left) or _no_number(node.right)
  text = isinstance(node, ast.Constant) and (
    node.value is None or isinstance(node.value, str | bytes)
  )
  return text or isinstance(
    node, ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple | ast.Dict | ast.DictComp | ast.Set
  )


def sites(source: str) -> list[Site]:
  """Returns all that can be changed in a source, in the order in which it is found."""
  finder = _Finder(source)
  finder.visit(ast.parse(source))
  return finder.found
