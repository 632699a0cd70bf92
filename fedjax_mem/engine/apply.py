"""One round whose clients send given updates, to see what some layers make of them."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Context,
  Draws,
  Layer,
  Message,
  Noises,
  Stage,
  Task,
  Trains,
  Tree,
  Weighs,
  stack_clients,
)
from fedjax_mem.core.round import flattened
from fedjax_mem.engine.execution import Execution
from fedjax_mem.engine.run import simulate
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import by_examples, equal

_WEIGHT = 'weight'


class Applied(NamedTuple):
  """The result of a round of given updates.

  Attributes:
    update: what the server's optimizer would be handed, a tree of NumPy arrays [...].
    metrics: those of any round: name or 'layer/metric' -> number, or array with a value a client.
  """

  update: Tree
  metrics: dict[str, Any]


def apply(
  updates: Tree,
  *layers: Layer | tuple[Layer, ...],
  weights: Any = None,
  seed: int = 0,
  noise_seed: int | None = None,
) -> Applied:
  """Returns what layers make of the updates of C clients: without any layer, their mean.

  Runs one whole round, checked as any other, in which client i sends row i.

  >>> fm.apply([[1.0, 2.0], [3.0, 4.0]]).update.tolist()
  [2.0, 3.0]
  >>> fm.apply([[1.0], [2.0], [60.0]], fm.stages.aggregate.median()).update.tolist()
  [2.0]

  Args:
    updates: tree of [C, ...] real numbers, in client order; lists of numbers are arrays. They are
      float32, unless they are float16 or bfloat16. What is not finite is treated as in any round.
    layers: that work on messages, in the order in which they run on the client. (Those that work
      on tasks, such as label flipping, have nothing to train here and are refused.) Where none of
      them draws, all clients take part. Where none weighs, the average is weighted by `weights`;
      with noise each client weighs 1 and the divisor is the expected cohort.
    weights: [C] numbers > 0; None: 1 each.
    seed: root of every random draw, in [0, 2 ** 32).
    noise_seed: of the noise, as in `simulate`; None: another noise in each call.

  Raises:
    ValueError: updates or weights of no common length C, or an argument out of range.
    IncompatibleStages: layers that do not fit together.
  """
  arrays, counts, structure = _rows(updates, weights)
  held: dict[str, Any] = {str(i): x for i, x in enumerate(arrays)}
  held[_WEIGHT] = counts.astype(np.float32)
  number = len(counts)
  given = list(flattened(*layers))
  draws = next((x.fact(Draws) for x in given if x.fact(Draws) is not None), None)
  if draws is None:
    given = [round_robin(number, number), *given]
  first = [x for x in given if set(x.sides) <= {'select', 'server'} and x.select is not None]
  rest = [x for x in given if x not in first]
  expected = float(number if draws is None else draws.expected)
  weigh = _weighing(given, expected, weights)
  params = jax.tree.unflatten(structure, [jnp.zeros(x.shape[1:], x.dtype) for x in arrays])
  simulation = simulate(
    (_sends(structure), *first, *weigh, *rest),
    params,
    stack_clients([{k: x[i : i + 1] for k, x in held.items()} for i in range(number)]),
    seed=seed,
    noise_seed=noise_seed,
    execution=Execution(mode='vmap', devices=1),
    max_rounds=1,
  )
  state, metrics = simulation.run(simulation.init(params), 1)
  return Applied(jax.device_get(state.params), {k: np.asarray(v)[0] for k, v in metrics.items()})


def _weighing(given: list[Layer], expected: float, weights: Any) -> list[Layer]:
  """Returns the layer that weighs, unless one of the given layers does.

  Raises:
    ValueError: weights beside noise, under which clients weigh the same.
  """
  if any(x.fact(Weighs) is not None for x in given):
    return []
  noisy = [x.name for x in given if x.fact(Noises) is not None]
  if noisy and weights is not None:
    raise ValueError(
      f'weights must be left out beside the noise of {noisy[0]!r}, under which each client '
      f'weighs 1, got {weights!r}.'
    )
  return [equal(expected) if noisy else by_examples()]


def _rows(updates: Tree, weights: Any) -> tuple[list[Any], Any, Any]:
  """Returns (arrays [C, ...] of the leaves, weights [C], structure), or raises `ValueError`."""
  leaves, structure = jax.tree.flatten(updates, is_leaf=_are_numbers)
  try:
    arrays = [np.asarray(x) for x in leaves]
  except ValueError as error:
    raise ValueError(f'updates must be a tree of arrays [C, ...], got {error}') from error
  if not all(jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.kind in 'biu' for x in arrays):
    raise ValueError(f'updates must be real numbers, got {[str(x.dtype) for x in arrays]!r}.')
  small = (jnp.float16, jnp.bfloat16)
  arrays = [x if x.dtype in small else x.astype(np.float32) for x in arrays]
  counts = np.ones(len(arrays[0]) if arrays else 0) if weights is None else np.asarray(weights)
  sizes = {x.shape[:1] for x in [*arrays, counts]}
  wrong = not arrays or len(sizes) != 1 or sizes == {(0,)} or counts.ndim != 1
  if wrong or not (np.isfinite(counts) & (counts > 0)).all():
    raise ValueError(
      'updates must be a tree of arrays [C, ...] and weights [C] numbers > 0, with one C >= 1, got '
      f'shapes {[x.shape for x in arrays]!r} and weights {weights!r}.'
    )
  return arrays, counts, structure


def _are_numbers(x: Any) -> bool:
  """Returns whether x is a list or tuple of numbers, or of such lists: an array, written out."""
  return type(x) in (list, tuple) and all(isinstance(y, numbers.Real) or _are_numbers(y) for y in x)


def _sends(structure: Any) -> Layer:
  """Returns an algorithm whose clients send what they hold; its new parameters are the result."""

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, dict[str, Any]]:
    del ctx
    held = {k: x[0] for k, x in task.data.take(jnp.zeros(1, jnp.int32)).items()}
    weight = held.pop(_WEIGHT)
    leaves = [held[str(i)] for i in range(len(held))]
    return Message(jax.tree.unflatten(structure, leaves), weight, {}), state, {}

  server = Stage(lambda ctx, message, state: (message.update, state, {}))
  return Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=server)
