"""Mime: clients use the server's momentum, and gradients whose variance is reduced."""

import optax

from fedjax_mem.core import Layer
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _mime


def mime(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  epochs: int = 1,
  beta: float = 0.9,
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the Mime layer: y <- y - eta ((1 - beta) (g(y) - g(x) + c) + beta m).

  g(y) and g(x) are gradients of the same batch at the client's and the server's parameters; c is
  the mean of the cohort's gradients at x, and m the server's momentum, m <- (1 - beta) c + beta m.
  A client sends its gradient over all its examples at x beside its update, as `aux['gradient']`.

  The paper asks the cohort for c at x before it trains, which is a second sum in a round. Here c is
  that of the round before, of its cohort and its x. It starts at zero: in the first round clients
  stay where they are, but for weight decay, and only their gradients are gathered.

  Reference: Karimireddy et al. (2021), arXiv 2008.03606, Algorithm 1, with SGD with momentum as
  the base algorithm.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> train = mime(loss, learning_rate=0.5, batch_size=1, beta=0.0)
  >>> layers = train, fm.stages.select.uniform(1, 1), fm.stages.weigh.equal()
  >>> sim = fm.simulate(layers, jnp.zeros(()), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> sim.run(sim.init(jnp.zeros(())), 2)[0].params.item()  # the second round's step
  0.5

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
  return _mime.layer(train, beta, server_optimizer, reduced=True)
