"""Which way to convolve is faster for which layer? Fills the choice in `kernels.nn.conv.resolve`.

    python -m benchmarks.conv [--batch 20] [--repeat 9]

Prints one JSON line for each layer and way: forward and backward pass inside a scan of eight steps
(where a training step lives), on one host device, in milliseconds a step: the least of CPU time
over the repeats, since a shared machine only ever adds to it. The last line of a layer names the
fastest. Shapes: the layers of the models here, and square ones with 4 to 64 channels in between.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_mem.kernels.nn import conv

STEPS = 8
# name: side of the input, input and output channels, side of the window, first layer or not.
LAYERS = {
  'cnn/conv_0': (28, 1, 32, 3, True),
  'cnn/conv_1': (26, 32, 64, 3, False),
  'cnn_mcmahan/conv_0': (32, 1, 32, 5, True),
  'cnn_mcmahan/conv_1': (18, 32, 64, 5, False),
  'lenet/conv_0': (28, 1, 6, 5, True),
  'lenet/conv_1': (12, 6, 16, 5, False),
  'resnet_gn/stage_0': (34, 64, 64, 3, False),
  'square/4': (18, 4, 4, 3, False),
  'square/8': (18, 8, 8, 3, False),
  'square/16': (18, 16, 16, 3, False),
  'square/32': (18, 32, 32, 3, False),
  'square/64': (18, 64, 64, 3, False),
  'square/16 of 5': (18, 16, 16, 5, False),
  'square/8 of 5': (18, 8, 8, 5, False),
  'small/4x4': (6, 64, 64, 3, False),
  'small/2x2': (4, 64, 64, 3, False),
}
WAYS = {
  'winograd HWBC': {'method': 'winograd', 'layout': 'HWBC'},
  'gemm HWBC': {'method': 'gemm', 'layout': 'HWBC'},
  'gemm CHWB': {'method': 'gemm', 'layout': 'CHWB'},
}


def steps_of(way: dict[str, str], first: bool) -> Callable[..., jax.Array]:
  """Returns the training steps (kernel, x, cotangent) -> kernel of one layer alone."""

  def step(kernel: jax.Array, x: jax.Array, cotangent: jax.Array):
    y, pull = jax.vjp(lambda x, k: conv.conv(x, k, **way), x, kernel)
    d_x, d_kernel = pull(cotangent + 1e-6 * y)
    following = x if first else x - 1e-3 * d_x
    return kernel - 1e-3 * d_kernel, following

  def steps(kernel: jax.Array, x: jax.Array, cotangent: jax.Array) -> jax.Array:
    def body(carry, _):
      return step(*carry, cotangent), None

    return lax.scan(body, (kernel, x), None, STEPS)[0][0]

  return steps


def measure(run: Callable[[], jax.Array], repeat: int) -> float:
  """Returns the least CPU time of a run, in milliseconds a step."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeat):
    start = time.process_time()
    jax.block_until_ready(run())
    times.append(time.process_time() - start)
  return min(times) / STEPS * 1e3


def layer(name: str, batch: int, repeat: int) -> dict[str, float]:
  """Prints and returns the time of each way to compute a layer."""
  side, channels, out, window, first = LAYERS[name]
  rng, end = np.random.default_rng(0), side - window + 1
  kernel = jnp.asarray(rng.normal(size=(window, window, channels, out)) * 0.1, jnp.float32)
  times = {}
  for way, options in WAYS.items():
    if way.startswith('winograd') and channels == 1:
      continue
    shape = {'H': side, 'W': side, 'B': batch, 'C': channels}
    x = jnp.asarray(rng.normal(size=[shape[a] for a in options['layout']]), jnp.float32)
    shape = {'H': end, 'W': end, 'B': batch, 'C': out}
    g = jnp.asarray(rng.normal(size=[shape[a] for a in options['layout']]), jnp.float32)
    run = jax.jit(steps_of(options, first)).lower(kernel, x, g).compile()
    times[way] = measure(lambda run=run, x=x, g=g: run(kernel, x, g), repeat)
    flops = (2 if first else 3) * 2 * batch * end**2 * window**2 * channels * out
    record = {'layer': name, 'batch': batch, 'way': way, 'ms': round(times[way], 3)}
    print(json.dumps({**record, 'gflops': round(flops / times[way] / 1e6, 1)}), flush=True)
  return times


def main() -> None:
  """Measures every layer."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--batch', type=int, default=20)
  parser.add_argument('--repeat', type=int, default=9)
  arguments = parser.parse_args()
  for name in LAYERS:
    times = layer(name, arguments.batch, arguments.repeat)
    print(json.dumps({'layer': name, 'fastest': min(times, key=times.__getitem__)}), flush=True)


if __name__ == '__main__':
  main()
