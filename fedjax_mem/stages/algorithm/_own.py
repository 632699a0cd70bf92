"""What stays with each client: batch normalisation of its own (FedBN).

A client's state is {'own': its statistics, scales and biases, 'rounds': int32, those in which it
took part}. Where nothing is local, clients have no state.

Reference: Li et al. (2021), arXiv 2102.07623, Algorithm 1: all parameters of batch normalisation
stay local, and all others are averaged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Fact, Message, Personal, Task, Tree, running, tree
from fedjax_mem.stages.algorithm._base import LossFn, Trained, sent


def facts(loss: LossFn) -> tuple[Fact, ...]:
  """Returns what a client side that trains by the loss states of what its clients keep."""
  if not running.is_local(loss):
    return ()

  def mean(params: Tree, rows: Tree) -> Tree:
    first, took = running.divide(loss, params)[1], rows['rounds'] > 0
    count = took.sum(dtype=jnp.float32)
    over = tree.scale(1 / jnp.maximum(count, 1), tree.total(tree.keep(took, rows['own'])))
    return with_own(loss, params, tree.select(count > 0, over, first))

  def of(params: Tree, rows: Tree, client: jax.Array) -> Tree:
    row = jax.tree.map(lambda x: x[client], rows)
    absent = running.divide(loss, params)[1]
    return with_own(loss, params, tree.select(row['rounds'] > 0, row['own'], absent))

  return (Personal(lambda params: running.divide(loss, params)[0], mean, of),)


def init(loss: LossFn) -> Callable[[Context], Tree] | None:
  """Returns what makes a client's state before its first round; None if it keeps nothing."""
  if not running.is_local(loss):
    return None
  return lambda ctx: {'own': running.divide(loss, ctx.params)[1], 'rounds': jnp.int32(0)}


def given(loss: LossFn, task: Task, state: Tree) -> Task:
  """Returns the task with the parameters that the client keeps in the place of the server's."""
  if not running.is_local(loss):
    return task
  return task._replace(params=with_own(loss, task.params, state['own']))


def told(loss: LossFn, task: Task, done: Trained, state: Tree) -> tuple[Message, Tree]:
  """Returns a client's message, and its state after the round."""
  (start, _), (end, own) = (running.divide(loss, x) for x in (task.params, done.params))
  message = sent(task._replace(params=start), done._replace(params=end))
  kept = {'own': own, 'rounds': state['rounds'] + 1} if running.is_local(loss) else state
  return message, kept


def with_own(loss: Any, params: Tree, own: Tree) -> Tree:
  """Returns the parameters with a client's own part in place of theirs."""
  return running.unite(loss, running.divide(loss, params)[0], own)
