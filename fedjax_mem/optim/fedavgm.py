"""FedAvg's server step, plain and with momentum."""

import optax

from fedjax_mem.core import validate


def sgd(learning_rate: float = 1.0) -> optax.GradientTransformation:
  """Returns FedAvg's step, x <- x - learning_rate d; at 1 the average of the clients' models.

  >>> optimizer = sgd(learning_rate=0.5)
  >>> step, _ = optimizer.update(jnp.float32(4), optimizer.init(jnp.float32(0)))
  >>> float(step)
  -2.0

  Reference: McMahan, Moore, Ramage, Hampson, Agüera y Arcas (2017), arXiv 1602.05629, Algorithm 1.

  Args:
    learning_rate: server learning rate, > 0.

  Raises:
    ValueError: the learning rate is not > 0.
  """
  return optax.sgd(validate.positive(learning_rate=learning_rate))


def fedavgm(learning_rate: float = 1.0, momentum: float = 0.9) -> optax.GradientTransformation:
  """Returns FedAvgM, v <- momentum v + d; x <- x - learning_rate v.

  >>> optimizer = fedavgm(momentum=0.5)
  >>> first, state = optimizer.update(jnp.float32(4), optimizer.init(jnp.float32(0)))
  >>> second, state = optimizer.update(jnp.float32(4), state)
  >>> float(first), float(second)
  (-4.0, -6.0)

  Reference: Hsu, Qi, Brown (2019), arXiv 1909.06335, section 4.3.

  Args:
    learning_rate: server learning rate, > 0.
    momentum: in [0, 1).

  Raises:
    ValueError: a hyper-parameter is out of range.
  """
  validate.positive(learning_rate=learning_rate)
  validate.below_one(momentum=momentum)
  return optax.sgd(learning_rate, momentum=momentum)
