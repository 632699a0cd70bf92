"""One round whose clients send given updates, to see what some layers make of them."""

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
  updates: Tree, *layers: Layer | tuple[Layer, ...], weights: Any = None, seed: int = 0
) -> Applied:
  """Returns what layers make of the updates of C clients: without any layer, their mean.

  Runs one whole round, checked as any other, in which client i sends row i. Use it to see what a
  method does, and to try one of your own.

  >>> fm.apply([[1.0, 2.0], [3.0, 4.0]]).update.tolist()
  [2.0, 3.0]
  >>> fm.apply([[1.0], [2.0], [60.0]], fm.stages.aggregate.median()).update.tolist()
  [2.0]

  Args:
    updates: tree of [C, ...] floats, in client order.
    layers: that work on messages, in the order in which they run on the client. (Those that work
      on tasks, such as label flipping, have nothing to train here and are refused.) Where none of
      them draws, all clients take part. Where none weighs, the average is weighted by `weights`;
      with noise (`Noises`) each client weighs 1 and the sum is divided by C.
    weights: [C] numbers > 0; None: 1 each.
    seed: root of every random draw, in [0, 2 ** 32).

  Raises:
    ValueError: updates or weights of no common length C, or an argument out of range.
    IncompatibleStages: layers that do not fit together.
  """
  arrays, counts, structure = _rows(updates, weights)
  held: dict[str, Any] = {str(i): x for i, x in enumerate(arrays)}
  held[_WEIGHT] = counts.astype(np.float32)
  number = len(counts)
  given = flattened(*layers)
  facts = {type(fact) for x in given for side in x.sides.values() for fact in side.facts}
  choosing = [x for x in given if x.select is not None]
  if Draws not in facts:
    choosing = [round_robin(number, number), *choosing]
  weigh = [] if Weighs in facts else [equal(float(number)) if Noises in facts else by_examples()]
  rest = [x for x in given if x.select is None]
  params = jax.tree.unflatten(structure, [jnp.zeros(x.shape[1:], x.dtype) for x in arrays])
  simulation = simulate(
    (_sends(structure), *choosing, *weigh, *rest),
    params,
    stack_clients([{k: x[i : i + 1] for k, x in held.items()} for i in range(number)]),
    seed=seed,
    execution=Execution(mode='vmap', devices=1),
    max_rounds=1,
  )
  state, metrics = simulation.run(simulation.init(params), 1)
  return Applied(jax.device_get(state.params), {k: np.asarray(v)[0] for k, v in metrics.items()})


def _rows(updates: Tree, weights: Any) -> tuple[list[Any], Any, Any]:
  """Returns (arrays [C, ...] of the leaves, weights [C], structure), or raises `ValueError`."""
  leaves, structure = jax.tree.flatten(updates, is_leaf=lambda x: isinstance(x, list | tuple))
  try:
    arrays = [np.asarray(x) for x in leaves]
  except ValueError as error:
    raise ValueError(f'updates must be a tree of arrays [C, ...], got {error}') from error
  arrays = [x if x.dtype == np.float16 else x.astype(np.float32) for x in arrays]
  counts = np.ones(len(arrays[0]) if arrays else 0) if weights is None else np.asarray(weights)
  sizes = {x.shape[:1] for x in [*arrays, counts]}
  if not arrays or len(sizes) != 1 or sizes == {(0,)} or counts.ndim != 1 or (counts <= 0).any():
    raise ValueError(
      'updates must be a tree of arrays [C, ...] and weights [C] numbers > 0, with one C >= 1, got '
      f'shapes {[x.shape for x in arrays]!r} and weights {weights!r}.'
    )
  return arrays, counts, structure


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
