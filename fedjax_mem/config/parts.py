"""The parts of an experiment, and its first parameters, which are drawn beside other work."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from fedjax_mem.core import Round, Tree
from fedjax_mem.data.source import FederatedData
from fedjax_mem.models.base import Model


class Parts(NamedTuple):
  """The parts of an experiment.

  Attributes:
    data: the clients' examples, on the host.
    model: the model.
    layers: the layers of a round.
    like: the shapes of the model's parameters.
    drawing: the initial parameters, or what will be.
  """

  data: FederatedData
  model: Model
  layers: Round
  like: Tree
  drawing: 'Future[Tree]'

  @property
  def params(self) -> Tree:
    """The model's initial parameters; waits until they are drawn."""
    return self.drawing.result()


def beside(draw: Callable[[], Tree]) -> 'Future[Tree]':
  """Returns what `draw` will return: it runs in a thread of its own.

  The compiler of the program that draws works while a round is planned and traced. JAX's settings
  for a part of a program are the caller's alone: `draw` must not trace anything.
  """
  pool = ThreadPoolExecutor(1, thread_name_prefix='parameters')
  drawing = pool.submit(draw)
  pool.shutdown(wait=False)  # the thread ends with its only task
  return drawing


def undrawn() -> 'Future[Tree]':
  """Returns parameters that are never drawn: who asks for them gets a `RuntimeError`."""
  drawing: Future[Tree] = Future()
  drawing.set_exception(RuntimeError('the parameters of a plan are not drawn'))
  return drawing


def known(params: Tree) -> 'Future[Tree]':
  """Returns parameters that are there already as if they had been drawn."""
  drawing: Future[Tree] = Future()
  drawing.set_result(params)
  return drawing
