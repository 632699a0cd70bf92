"""FedAdagrad, FedAdam and FedYogi: adaptive server optimizers in the form of Reddi et al.

Reference: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan (2021), "Adaptive
Federated Optimization", arXiv 2003.00295, Algorithm 2. It differs from optax's adam, yogi and
adagrad: there is no bias correction, the second moment starts at tau**2, and tau stands outside the
root:

    m <- b1 m + (1 - b1) d        d: the average update, here server - client, so we descend
    v <- v + d**2                                    (Adagrad, with b1 = 0)
    v <- v - (1 - b2) d**2 sign(v - d**2)            (Yogi)
    v <- b2 v + (1 - b2) d**2                        (Adam)
    x <- x - learning_rate m / (sqrt(v) + tau)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_mem.core import validate


class AdaptiveState(NamedTuple):
  """State of an adaptive server optimizer: the two moments, trees of the parameters' shapes."""

  momentum: Any
  second_moment: Any


def _adaptive(
  learning_rate: float, b1: float, tau: float, second_moment: Callable[..., jax.Array]
) -> optax.GradientTransformation:
  validate.positive(learning_rate=learning_rate)
  validate.positive(tau=tau)

  def init(params: Any) -> AdaptiveState:
    return AdaptiveState(
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(lambda x: jnp.full_like(x, tau**2), params),
    )

  def update(updates: Any, state: AdaptiveState, params: Any = None) -> tuple[Any, AdaptiveState]:
    del params
    m = jax.tree.map(lambda d, m: b1 * m + (1 - b1) * d, updates, state.momentum)
    v = jax.tree.map(lambda d, v: second_moment(v, jnp.square(d)), updates, state.second_moment)
    steps = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), m, v)
    return steps, AdaptiveState(m, v)

  return optax.GradientTransformation(init, update)


def fedadagrad(learning_rate: float, tau: float = 1e-3) -> optax.GradientTransformation:
  """Returns FedAdagrad (Reddi et al. 2021, Algorithm 2; b1 = 0).

  >>> optimizer = fedadagrad(learning_rate=0.1)
  >>> updates = jnp.array([2.0, 0.02])
  >>> step, _ = optimizer.update(updates, optimizer.init(jnp.zeros(2)))
  >>> [round(x, 3) for x in step.tolist()]
  [-0.1, -0.095]

  Args:
    learning_rate: server learning rate, > 0.
    tau: degree of adaptivity, > 0; the second moment starts at tau**2.

  Raises:
    ValueError: a hyper-parameter is out of range.
  """
  return _adaptive(learning_rate, 0.0, tau, lambda v, d2: v + d2)


def fedadam(
  learning_rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
  """Returns FedAdam (Reddi et al. 2021, Algorithm 2).

  >>> optimizer = fedadam(learning_rate=0.1)
  >>> updates = jnp.array([2.0, 0.02])
  >>> step, _ = optimizer.update(updates, optimizer.init(jnp.zeros(2)))
  >>> [round(x, 3) for x in step.tolist()]
  [-0.1, -0.062]

  Args:
    learning_rate: server learning rate, > 0.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    tau: degree of adaptivity, > 0; the second moment starts at tau**2.

  Raises:
    ValueError: a hyper-parameter is out of range.
  """
  validate.below_one(b1=b1)
  validate.below_one(b2=b2)
  return _adaptive(learning_rate, b1, tau, lambda v, d2: b2 * v + (1 - b2) * d2)


def fedyogi(
  learning_rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
  """Returns FedYogi (Reddi et al. 2021, Algorithm 2).

  >>> optimizer = fedyogi(learning_rate=0.1)
  >>> updates = jnp.array([2.0, 0.02])
  >>> step, _ = optimizer.update(updates, optimizer.init(jnp.zeros(2)))
  >>> [round(x, 3) for x in step.tolist()]
  [-0.1, -0.062]

  Args:
    learning_rate: server learning rate, > 0.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    tau: degree of adaptivity, > 0; the second moment starts at tau**2.

  Raises:
    ValueError: a hyper-parameter is out of range.
  """
  validate.below_one(b1=b1)
  validate.below_one(b2=b2)
  return _adaptive(learning_rate, b1, tau, lambda v, d2: v - (1 - b2) * d2 * jnp.sign(v - d2))
