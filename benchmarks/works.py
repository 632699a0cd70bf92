"""The ten works that every simulator is measured by: same data, model and arithmetic for all.

Float32; images are scaled to [0, 1]. A permutation of the examples (NumPy's default_rng(0)) is cut
into consecutive blocks, one a client; the server averages by examples.
"""

import dataclasses
from typing import Any

import jax

from benchmarks import examples, flops
from fedjax_mem import data, models
from fedjax_mem.core import Layer, compose
from fedjax_mem.data.preprocess import Tokens
from fedjax_mem.engine import Simulation, simulate
from fedjax_mem.stages.algorithm import Sgd, dp_sgd, fedavg
from fedjax_mem.stages.compress import error_feedback, top_k
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
    data: name of the examples, see `examples.load`.
    dp_sgd: (local steps, rate of an example in a step, clip norm of its gradient, noise multiplier)
      of DP-SGD in the clients, whose noised sums are divided by `batch_size`; or None.
    feedback: share of an update's values that a client sends, those of largest magnitude, with the
      rest added to its next update; or None.
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
  data: str = 'fashion_mnist'
  dp_sgd: tuple[int, float, float, float] | None = None
  feedback: float | None = None

  @property
  def samples(self) -> int:
    """Examples that are trained on in a round, each as often as it is; with DP-SGD the expected."""
    local = self.epochs * self.examples if self.dp_sgd is None else self.batch_size * self.dp_sgd[0]
    return self.cohort * local

  @property
  def gflop(self) -> float:
    """Floating-point operations of a round in 10**9: a training step is three forward passes."""
    return 3 * self.forward_mflop * self.samples / 1e3

  def written(self) -> dict[str, Any]:
    """Returns the fields for work.json: those of its first version, and others that are used."""
    later = {'data', 'dp_sgd', 'feedback'}
    fields = dataclasses.fields(self)
    kept = (f.name for f in fields if f.name not in later or getattr(self, f.name) != f.default)
    return {name: getattr(self, name) for name in kept}


W1 = Work('cnn', 1_000, 60, 50, 1, 20, 0.05, 0.0, flops.cnn(), (14, 0.660))

WORKS = {
  'W1': W1,
  'W2': dataclasses.replace(W1, accuracy=None, privacy=(0.3, 1.0)),
  'W3': Work('logistic', 10_000, 6, 500, 1, 6, 0.05, 0.0, flops.dense(784, 10), (50, 0.685)),
  'W4': Work('lenet', 10, 6_000, 10, 10, 64, 0.01, 0.9, flops.lenet(), None),
  'L1': Work(
    'char_lstm', 10, 40, 10, 1, 10, 1.0, 0.0, flops.lstm(80, 8, 256, 90), None, data='tokens_80'
  ),
  'R1': Work(
    'resnet_gn', 4, 60, 4, 1, 20, 0.05, 0.0, flops.resnet(32, 3, 64, (2, 2, 2, 2), 10), None,
    data='fashion_mnist_32x32x3',
  ),
  'T1': Work(
    'transformer', 10, 40, 10, 1, 10, 0.1, 0.0, flops.transformer(128, 128, 2, 90), None,
    data='tokens_128',
  ),
  'M1': Work('mlp', 1_000, 60, 50, 1, 20, 0.05, 0.0, flops.dense(784, 200, 200, 10), None),
  'D1': dataclasses.replace(W1, cohort=8, accuracy=None, dp_sgd=(3, 1 / 3, 1.0, 1.0)),
  # A residual for each client: of 1,000 they would take 4.8 GB.
  'E1': dataclasses.replace(W1, num_clients=100, accuracy=None, feedback=0.01),
}  # fmt: skip


def load(work: Work, data_dir: str | None = None) -> data.FederatedData:
  """Returns the population of a work; beyond the last example the clients' lists repeat."""
  table = examples.load(work.data, work.num_clients * work.examples, data_dir)
  return federate(work, *table)


def federate(work: Work, x: Any, y: Any, test_x: Any, test_y: Any) -> data.FederatedData:
  """Returns stored arrays in the hands of a work's clients, as `benchmarks.peers` describes."""
  parts = data.partition('blocks', y, work.num_clients, seed=0, examples_per_client=work.examples)
  tokens = work.data.startswith('tokens')
  return data.from_arrays(
    x,
    y,
    parts,
    test=(test_x, test_y),
    num_classes=examples.VOCABULARY if tokens else 10,
    preprocess=Tokens() if tokens else None,
  )


def _algorithm(work: Work, model: models.Model) -> Layer:
  """Returns the layer that trains the clients of a work."""
  if work.dp_sgd is None:
    return fedavg(
      model.loss,
      learning_rate=work.learning_rate,
      batch_size=work.batch_size,
      epochs=work.epochs,
      optimizer=Sgd(work.momentum),
    )
  steps, rate, clip, noise = work.dp_sgd
  return dp_sgd(
    model.loss,
    learning_rate=work.learning_rate,
    batch_size=work.batch_size,
    steps=steps,
    rate=rate,
    l2_clip_norm=clip,
    noise_multiplier=noise,
  )


def layers(work: Work, model: models.Model, *more: Layer) -> tuple[Layer, ...]:
  """Returns the layers of a work, with `more` layers of messages after its own."""
  if work.privacy is not None:
    outer: tuple[Layer, ...] = (equal(divisor=work.cohort), central(*work.privacy))
  elif work.dp_sgd is not None:
    outer = (equal(),)
  else:
    outer = (by_examples(),)
  if work.feedback is not None:
    outer += (error_feedback(top_k(fraction=work.feedback)),)
  return compose(_algorithm(work, model), uniform(work.num_clients, work.cohort), *outer, *more)


def parts(work: Work, data_dir: str | None = None) -> tuple[Any, models.Model, Any]:
  """Returns (data, model, initial parameters) of a work."""
  population = load(work, data_dir)
  model = models.build(work.model, population.input_shape, population.num_classes)
  return population, model, jax.jit(model.init)(jax.random.key(0))


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
