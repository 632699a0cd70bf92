"""MimeLite: clients use the server's momentum and do not change it while they train."""

import optax

from fedjax_mem.core import Layer
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _mime


def mime_lite(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  epochs: int = 1,
  beta: float = 0.9,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the MimeLite layer: y <- y - eta ((1 - beta) g(y) + beta m).

  m is the server's momentum, m <- (1 - beta) c + beta m, where c is the mean of the cohort's
  gradients at the server's parameters. A client sends its gradient over all its examples beside its
  update, as `aux['gradient']`. With beta = 0 it is FedAvg.

  Reference: Karimireddy et al. (2021), arXiv 2008.03606, Algorithm 1, with SGD with momentum as
  the base algorithm.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = mime_lite(loss, learning_rate=0.5, batch_size=1, beta=0.5)
  >>> layers = train, fm.stages.select.uniform(1, 1), fm.stages.weigh.equal()
  >>> sim = fm.simulate(layers, jnp.zeros(()), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> sim.run(sim.init(jnp.zeros(())), 1)[0].params.item()  # half a gradient step, m is still 0
  0.25

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: eta, a number > 0 or a schedule round -> number.
    batch_size: examples in a local step, >= 1.
    epochs: passes of a client over its examples in a round, >= 1.
    beta: momentum, in [0, 1).
    optimizer: learning rate -> the optax optimizer that takes the step; SGD in the paper. A
      momentum of its own starts at zero in every round, and comes on top.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  train = training.Local(loss, learning_rate, batch_size, epochs, optimizer)
  return _mime.layer(train, beta, server_optimizer, reduced=False)
