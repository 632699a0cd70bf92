"""The four works that every simulator is measured by: same data, model and arithmetic for all.

Fashion-MNIST, inputs scaled to [0, 1], float32. W1 to W3 cut a permutation of the 60,000 examples
(NumPy's default_rng(0)) into consecutive blocks, one a client; the server averages by examples.
"""

import dataclasses
import itertools
from typing import Any

import jax

from fedjax_mem import data, models
from fedjax_mem.core import Layer, compose
from fedjax_mem.engine import Simulation, simulate
from fedjax_mem.stages.algorithm import Sgd, fedavg
from fedjax_mem.stages.privacy import central
from fedjax_mem.stages.select import uniform
from fedjax_mem.stages.weigh import by_examples, equal


@dataclasses.dataclass(frozen=True)
class Work:
  """One work.

  Attributes:
    model: name of the model.
    num_clients: N.
    examples: of each client.
    cohort: C.
    epochs: local epochs.
    batch_size: of a local step.
    learning_rate: of the clients.
    momentum: of the clients.
    forward_mflop: of one example, counting a multiplication and an addition as two.
    accuracy: (rounds, test accuracy that every simulator reaches after them).
    privacy: (clip norm, noise multiplier) of client-level privacy, or None.
  """

  model: str
  num_clients: int
  examples: int
  cohort: int
  epochs: int
  batch_size: int
  learning_rate: float
  momentum: float
  forward_mflop: float
  accuracy: tuple[int, float] | None
  privacy: tuple[float, float] | None = None

  @property
  def gflop(self) -> float:
    """Floating-point operations of a round in 10**9: a training step is three forward passes."""
    return 3 * self.forward_mflop * self.cohort * self.epochs * self.examples / 1e3


def _conv_mflop(side: int, kernel: int, inputs: int, outputs: int) -> float:
  return 2 * side * side * kernel * kernel * inputs * outputs / 1e6


def _dense_mflop(*sizes: int) -> float:
  return sum(2 * a * b for a, b in itertools.pairwise(sizes)) / 1e6


_CNN = _conv_mflop(26, 3, 1, 32) + _conv_mflop(24, 3, 32, 64) + _dense_mflop(9216, 128, 10)
_LENET = _conv_mflop(24, 5, 1, 6) + _conv_mflop(8, 5, 6, 16) + _dense_mflop(256, 120, 84, 10)

WORKS = {
  'W1': Work('cnn', 1_000, 60, 50, 1, 20, 0.05, 0.0, _CNN, (14, 0.660)),
  'W2': Work('cnn', 1_000, 60, 50, 1, 20, 0.05, 0.0, _CNN, None, (0.3, 1.0)),
  'W3': Work('logistic', 10_000, 6, 500, 1, 6, 0.05, 0.0, _dense_mflop(784, 10), (50, 0.685)),
  'W4': Work('lenet', 10, 6_000, 10, 10, 64, 0.01, 0.9, _LENET, None),
}


def load(work: Work, data_dir: str | None = None) -> data.FederatedData:
  """Returns the population of a work; beyond 60,000 examples the clients' lists repeat."""
  return data.load(
    'fashion_mnist',
    partition='blocks',
    num_clients=work.num_clients,
    examples_per_client=work.examples,
    seed=0,
    data_dir=data_dir,
  )


def layers(work: Work, model: models.Model, *more: Layer) -> tuple[Layer, ...]:
  """Returns the layers of a work, with `more` layers of messages after its own."""
  if work.privacy is None:
    outer: tuple[Layer, ...] = (by_examples(),)
  else:
    outer = (equal(divisor=work.cohort), central(*work.privacy))
  return compose(
    fedavg(
      model.loss,
      learning_rate=work.learning_rate,
      batch_size=work.batch_size,
      epochs=work.epochs,
      optimizer=Sgd(work.momentum),
    ),
    uniform(work.num_clients, work.cohort),
    *outer,
    *more,
  )


def parts(work: Work, data_dir: str | None = None) -> tuple[Any, models.Model, Any]:
  """Returns (data, model, initial parameters) of a work."""
  population = load(work, data_dir)
  model = models.build(work.model, population.input_shape, population.num_classes)
  return population, model, model.init(jax.random.key(0))


def simulation(
  work: Work, data_dir: str | None, *more: Layer, segment: int = 1
) -> tuple[Simulation, Any]:
  """Returns (the simulation of a work, `segment` rounds a segment; its initial parameters)."""
  population, model, params = parts(work, data_dir)
  sim = simulate(
    layers(work, model, *more),
    params,
    population.population(),
    max_rounds=segment,
    transforms=(population.preprocess,),
  )
  return sim, params
