"""Examples of the works' shapes, drawn here, where those of Fashion-MNIST are not prepared."""

import jax
import numpy as np

from benchmarks import works
from fedjax_mem import data, models
from fedjax_mem.core import platforms
from fedjax_mem.engine import Execution, simulate

IMAGES = 60_000  # training examples of Fashion-MNIST


def load(work: works.Work) -> tuple[data.FederatedData, str]:
  """Returns the population of a work, and the name of its examples: 'synthetic' for those here."""
  try:
    return works.load(work), work.data
  except (ImportError, ValueError):  # what reads them is not installed, or they are not prepared
    number, shape = _shape(work)
    drawn = (*_pictures(0, number, shape), *_pictures(1, 500, shape))
    return works.federate(work, *drawn), 'synthetic'


def _shape(work: works.Work) -> tuple[int, tuple[int, ...]]:
  """Returns the number of a work's training examples, and the shape of one."""
  number = work.num_clients * work.examples
  if work.data.startswith('tokens_'):
    return number, (int(work.data.removeprefix('tokens_')),)
  if work.data == 'fashion_mnist':
    return IMAGES, (28, 28)
  return min(number, IMAGES), (32, 32, 3)


def _pictures(seed: int, number: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Returns images that a logistic model can learn, and labels: a bright row says the label."""
  rng = np.random.default_rng(seed)
  y = rng.integers(0, 10, number, dtype=np.int32)
  x = rng.integers(0, 100, (number, *shape), np.uint8)
  x[np.arange(number), 2 * y] += 155
  return x, y


def traced(work: works.Work, platform: str) -> jax.stages.Traced:
  """Returns the program of a work on one device, traced with zeros for examples.

  Args:
    work: the work.
    platform: whose paths it takes, see `platforms.made_for`.
  """
  number, shape = _shape(work)
  x = np.zeros((number, *shape), np.uint8)
  y = np.zeros((number, *(shape if work.data.startswith('tokens_') else ())), np.int32)
  population = works.federate(work, x, y, x[:2], y[:2])
  model = models.build(work.model, population.input_shape, population.num_classes)
  with platforms.made_for(platform):
    sim = simulate(
      works.layers(work, model),
      jax.eval_shape(model.init, jax.random.key(0)),
      population.population(),
      execution=Execution(devices=1),
      max_rounds=1,
      transforms=(population.preprocess,),
    )
    return sim.traced()
