"""What does rewriting the convolutions of a user's own model change on a CPU?

    python -m benchmarks.anymodel [--models linen nnx functions] [--modes loop vmap] [--rounds 5]

The models are as their authors publish them, none of them written for this package: the CNN of
flax's MNIST example in `flax.linen` and in `flax.nnx`, the same network by `jax.lax` alone with
max pooling over windows that overlap, and equinox's CNN of its MNIST example (where equinox is
installed). 10 clients of 60 examples, one epoch of batches of 20, SGD 0.05, random images: it is
the time that counts. Prints one JSON line for each model and mode: seconds of a round as it was
given and rewritten, in turn in one process, the least of `--rounds` each (what else runs on the
machine only adds), their ratio, how far their parameters are apart after the first round, and the
seconds that the first round took, compiling included.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fedjax_mem import core, models
from fedjax_mem.engine import Execution, Simulation, simulate
from fedjax_mem.stages import algorithm, select, weigh

CLIENTS, EXAMPLES, BATCH = 10, 60, 20
SHAPE = (28, 28, 1)


class Linen(nn.Module):
  """The CNN of examples/mnist/train.py of flax, before the example moved to nnx."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, 10] of x [B, 28, 28, 1]."""
    x = nn.Conv(features=32, kernel_size=(3, 3))(x)
    x = nn.relu(x)
    x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = nn.Conv(features=64, kernel_size=(3, 3))(x)
    x = nn.relu(x)
    x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.Dense(features=256)(x)
    x = nn.relu(x)
    return nn.Dense(features=10)(x)


class Nnx(nnx.Module):
  """The same network in nnx."""

  def __init__(self, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
    self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
    self.linear1 = nnx.Linear(3136, 256, rngs=rngs)
    self.linear2 = nnx.Linear(256, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, 10] of x [B, 28, 28, 1]."""
    x = nnx.avg_pool(nnx.relu(self.conv1(x)), window_shape=(2, 2), strides=(2, 2))
    x = nnx.avg_pool(nnx.relu(self.conv2(x)), window_shape=(2, 2), strides=(2, 2))
    x = x.reshape(x.shape[0], -1)
    return self.linear2(nnx.relu(self.linear1(x)))


def functions() -> models.Model:
  """Returns a CNN by `jax.lax` alone, NCHW, with max pooling 3 x 3 at strides of 2."""
  shapes = {'a': (32, 1, 3, 3), 'b': (64, 32, 3, 3), 'c': (64 * 7 * 7, 10)}

  def init(key: jax.Array) -> dict[str, jax.Array]:
    keys = jax.random.split(key, len(shapes))
    draw = lambda key, shape: 0.05 * jax.random.normal(key, shape)
    return {name: draw(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}

  def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = x.transpose(0, 3, 1, 2)
    for name in 'ab':
      x = jax.nn.relu(lax.conv(x, params[name], (1, 1), 'SAME'))
      x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), 'SAME')
    return x.reshape(len(x), -1) @ params['c']

  return models.from_functions(init, apply, SHAPE, 10)


def equinox() -> models.Model:
  """Returns the CNN of equinox's MNIST example (docs/examples/mnist.ipynb)."""
  import equinox as eqx

  def layers(key: jax.Array) -> list[Any]:
    keys = jax.random.split(key, 4)
    return [
      eqx.nn.Conv2d(1, 3, kernel_size=4, key=keys[0]),
      eqx.nn.MaxPool2d(kernel_size=2),
      jax.nn.relu,
      jnp.ravel,
      eqx.nn.Linear(1728, 512, key=keys[1]),
      jax.nn.sigmoid,
      eqx.nn.Linear(512, 64, key=keys[2]),
      jax.nn.relu,
      eqx.nn.Linear(64, 10, key=keys[3]),
      jax.nn.log_softmax,
    ]

  static = eqx.partition(layers(jax.random.key(0)), eqx.is_inexact_array)[1]

  def one(params: Any, x: jax.Array) -> jax.Array:
    x = x.transpose(2, 0, 1)
    for layer in eqx.combine(params, static):
      x = layer(x)
    return x

  init = lambda key: eqx.filter(layers(key), eqx.is_inexact_array)
  apply = lambda params, x: jax.vmap(lambda x: one(params, x))(x)
  return models.from_functions(init, apply, SHAPE, 10, name='equinox')


MODELS: dict[str, Callable[[], models.Model]] = {
  'linen': lambda: models.from_linen(Linen(), SHAPE, 10),
  'nnx': lambda: models.from_nnx(Nnx, SHAPE, 10),
  'functions': functions,
  'equinox': equinox,
}


def simulation(loss: Any, params: Any, mode: str) -> Simulation:
  """Returns rounds of all clients, on one device."""
  rng = np.random.default_rng(0)
  draw = lambda: {
    'x': rng.random((EXAMPLES, *SHAPE), np.float32),
    'y': rng.integers(10, size=EXAMPLES).astype(np.int32),
  }
  layers = (
    algorithm.fedavg(loss, learning_rate=0.05, batch_size=BATCH),
    select.uniform(CLIENTS, CLIENTS),
    weigh.by_examples(),
  )
  clients = core.stack_clients([draw() for _ in range(CLIENTS)])
  execution = Execution(mode=mode, devices=1)
  return simulate(layers, params, clients, execution=execution, max_rounds=1)


def compare(name: str, mode: str, rounds: int) -> dict[str, Any]:
  """Returns the record of a model in a mode of execution."""
  model = MODELS[name]()
  params = jax.jit(model.init)(jax.random.key(0))
  losses = {'as_given': models.as_it_is(model).loss, 'rewritten': model.loss}
  sims = {way: simulation(loss, params, mode) for way, loss in losses.items()}
  states, first, after = {}, {}, {}
  for way, sim in sims.items():
    began = time.perf_counter()
    states[way] = jax.block_until_ready(sim.run(sim.init(params), 1)[0])
    first[way] = time.perf_counter() - began
    after[way] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(states[way].params)])
  seconds: dict[str, list[float]] = {way: [] for way in sims}
  for _ in range(rounds):
    for way, sim in sims.items():
      began = time.perf_counter()
      states[way] = jax.block_until_ready(sim.run(states[way], 1)[0])
      seconds[way].append(time.perf_counter() - began)
  least = {way: min(times) for way, times in seconds.items()}
  apart = np.linalg.norm(after['as_given'] - after['rewritten']) / np.linalg.norm(after['as_given'])
  return {
    'model': name,
    'mode': mode,
    **{f'{way}_s': round(x, 4) for way, x in least.items()},
    'ratio': round(least['as_given'] / least['rewritten'], 1),
    'apart': float(f'{apart:.1e}'),
    **{f'first_{way}_s': round(x, 2) for way, x in first.items()},
  }


def main() -> None:
  """Measures every model in every mode."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--models', nargs='+', choices=MODELS, default=['linen', 'nnx', 'functions'])
  parser.add_argument('--modes', nargs='+', choices=('loop', 'vmap'), default=['loop', 'vmap'])
  parser.add_argument('--rounds', type=int, default=5)
  arguments = parser.parse_args()
  for name in arguments.models:
    for mode in arguments.modes:
      print(json.dumps(compare(name, mode, arguments.rounds)), flush=True)


if __name__ == '__main__':
  main()
