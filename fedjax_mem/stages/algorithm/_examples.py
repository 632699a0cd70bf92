"""Gradients example by example, without forming those of dense kernels.

The loss of one example is traced. Where a kernel [F, O] is used once only, in one product with one
vector, its gradient is vector ⊗ (gradient of the product) (Goodfellow 2015, arXiv 1510.01799), and
these two are all that is computed of it. All other parameters get the gradients that `jax.grad`
gives. What the loss does, not how its layers are called, decides: it holds for any model.

Examples never meet: the loss sees one at a time, under `jax.vmap`, so that a loss that mixes the
rows of a batch cannot mix two people's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from fedjax_mem.core import Batch, Tree
from fedjax_mem.kernels.norms.outer import Each, Outer
from fedjax_mem.stages.algorithm._base import LossFn


class Tap(NamedTuple):
  """A product in which a kernel is used.

  Attributes:
    equation: its number in the traced loss.
    vector: which of its operands is the vector, 0 or 1.
    first: whether the kernel's first axis is the one summed over: [F, O], not [O, F].
    output: shape of the product.
  """

  equation: int
  vector: int
  first: bool
  output: tuple[int, ...]


class Plan(NamedTuple):
  """The loss of one example, and where its kernels are used.

  Attributes:
    loss: traced, of (parameters, example, key), all flat.
    taps: for each parameter a tap, or None where its gradients are formed.
    formed: values of one example's gradient that are formed.
  """

  loss: ClosedJaxpr
  taps: tuple[Tap | None, ...]
  formed: int


def plan(loss: LossFn, params: Tree, example: Batch, key: Any) -> Plan:
  """Returns how the gradients of a loss are computed.

  Args:
    loss: (params, batch, key) -> losses [B].
    params: parameters, or their shapes.
    example: one example without a batch axis, or its shapes.
    key: a key, or its shape.

  Raises:
    ValueError: the loss does not return one value for one example.
  """

  def one(params: Tree, example: Batch, key: jax.Array) -> jax.Array:
    losses = loss(params, jax.tree.map(lambda x: x[None], example), key)
    if losses.shape != (1,):
      raise ValueError(
        f'loss must return one value per example, shape (1,) for one, got {losses.shape!r}.'
      )
    return losses[0]

  traced = jax.make_jaxpr(one)(params, example, key)
  leaves = jax.tree.leaves(params)
  taps = tuple(_tap(traced, i, len(leaves)) for i in range(len(leaves)))
  formed = sum(x.size for x, tap in zip(leaves, taps, strict=True) if tap is None)
  return Plan(traced, taps, formed)


def _tap(traced: ClosedJaxpr, leaf: int, leaves: int) -> Tap | None:
  """Returns the only use of a parameter if it is a product with one vector, else None.

  Args:
    traced: the loss of one example; its first arguments are the parameters.
    leaf: number of the parameter.
    leaves: number of parameters.
  """
  parameter = traced.jaxpr.invars[leaf]
  uses = [
    (i, place)
    for i, equation in enumerate(traced.jaxpr.eqns)
    for place, x in enumerate(equation.invars)
    if x is parameter
  ]
  # A result would be a use that no equation shows.
  if len(uses) != 1 or any(x is parameter for x in traced.jaxpr.outvars):
    return None
  (number, place), equation = uses[0], traced.jaxpr.eqns[uses[0][0]]
  if equation.primitive is not jax.lax.dot_general_p:
    return None
  # Of two parameters that are multiplied with each other neither is a vector of one example.
  if any(equation.invars[1 - place] is x for x in traced.jaxpr.invars[:leaves]):
    return None
  contracted, batched = equation.params['dimension_numbers']
  vector, (output,) = equation.invars[1 - place].aval, equation.outvars
  floats = {x.dtype for x in (parameter.aval, vector, output.aval)} == {jnp.dtype(jnp.float32)}
  # A vector: all its values are summed over. Of a sequence there would be several.
  alone = len(contracted[0]) == 1 and vector.size == vector.shape[contracted[1 - place][0]]
  if not floats or not alone or any(batched) or parameter.aval.ndim != 2:
    return None
  return Tap(number, 1 - place, contracted[place][0] == 0, output.aval.shape)


def gradients(
  plan: Plan, params: Tree, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, list[Each]]:
  """Returns (losses [N], the gradients of each parameter for each example).

  Args:
    plan: of the loss.
    params: parameters.
    batch: N examples.
    keys: [N], one for each example.
  """
  leaves = jax.tree.leaves(params)
  formed = [x for x, tap in zip(leaves, plan.taps, strict=True) if tap is None]
  taps = [tap for tap in plan.taps if tap is not None]
  # Zeros that are added to the products: the gradient of these is that of the products.
  nudges = [jnp.zeros(tap.output, jnp.float32) for tap in taps]

  def one(
    formed: list[jax.Array], nudges: list[jax.Array], example: Batch, key: jax.Array
  ) -> tuple[jax.Array, list[jax.Array]]:
    rest = iter(formed)
    given = [next(rest) if t is None else x for x, t in zip(leaves, plan.taps, strict=True)]
    places = {tap.equation: nudge for tap, nudge in zip(taps, nudges, strict=True)}
    loss, seen = _run(plan.loss, [*given, *jax.tree.leaves(example), key], places)
    return loss, [seen[tap.equation][tap.vector] for tap in taps]

  each = jax.vmap(jax.value_and_grad(one, (0, 1), has_aux=True), in_axes=(None, None, 0, 0))
  (losses, vectors), (plain, outputs) = each(formed, nudges, batch, keys)
  # In memory as they are: computed twice, in the norm and in the sum, they might be rounded twice.
  plain, vectors, outputs = jax.lax.optimization_barrier((plain, vectors, outputs))
  found, products = iter(plain), iter(zip(taps, vectors, outputs, strict=True))
  grads = [next(found) if tap is None else _outer(*next(products)) for tap in plan.taps]
  return losses, grads


def _outer(tap: Tap, vectors: jax.Array, outputs: jax.Array) -> Outer:
  """Returns the gradients of a kernel, in the order of its axes."""
  rows = [x.reshape(len(x), -1) for x in (vectors, outputs)]
  return Outer(*rows) if tap.first else Outer(*rows[::-1])


def _run(
  traced: ClosedJaxpr, args: list[Any], nudges: dict[int, jax.Array]
) -> tuple[jax.Array, dict[int, list[Any]]]:
  """Returns (what a traced loss gives, the operands of some of its equations).

  Args:
    traced: a function of one result.
    args: its arguments.
    nudges: number of an equation -> what is added to its result.
  """
  values = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
  values |= dict(zip(traced.jaxpr.invars, args, strict=True))

  def read(x: Any) -> Any:
    return x.val if isinstance(x, Literal) else values[x]

  seen: dict[int, list[Any]] = {}
  for number, equation in enumerate(traced.jaxpr.eqns):
    operands = [read(x) for x in equation.invars]
    options = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
      results = equation.primitive.bind(*operands, **options)
    results = list(results) if equation.primitive.multiple_results else [results]
    if number in nudges:
      seen[number] = operands
      results = [results[0] + nudges[number]]
    values |= dict(zip(equation.outvars, results, strict=True))
  return read(traced.jaxpr.outvars[0]), seen
