"""1-bit SGD: a codec of one's own, with error feedback of its own.

In a configuration: `stages = [{use = "one_bit:one_bit"}]`, with this folder on PYTHONPATH.
"""

import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import tree, wire
from fedjax_mem.stages import compress


def encode(draws, x, shapes):
  """Returns the code of x [D]: a bit for each value, and the means of either sign."""
  up = x > 0
  mean = lambda on: jnp.where(on, x, 0).sum() / jnp.maximum(on.sum(dtype=jnp.float32), 1)
  means = jnp.stack([mean(~up), mean(up)])
  return compress.Code((wire.Levels(up.astype(jnp.int32), 1), wire.Floats(means)), x[:0])


def decode(draws, code, shapes):
  """Returns what was encoded, as far as it was kept."""
  bits, means = code.parts
  return means.values[bits.values]


def one_bit():
  """Returns the layer that sends a bit a value, and adds what is left out to the next update.

  Client state: what was left out. Reference: Seide et al. (2014), Interspeech, section 3.
  """

  def client(ctx, message, memory):
    on = message.weight > 0
    whole = tree.add(message.update, memory)
    x = tree.ravel(tree.keep(on, whole))
    code = encode(None, x, None)
    values = jnp.where(tree.finite(x), decode(None, code, None), jnp.nan)
    update = tree.unravel(values, message.update)
    left = tree.select(on, tree.sub(whole, update), memory)
    size = compress.nbytes(compress.parts_of(code), message.aux)
    metrics = compress.reported(message.update, message.aux, size, on)
    return message._replace(update=update), left, metrics

  zeros = lambda ctx: tree.zeros(ctx.spec.update)
  fact = fm.Encodes(compress.Exchange('one_bit', feedback='it has a memory of its own'))
  return fm.Layer('one_bit', client=fm.Stage(client, zeros, (fact,)))


def without_memory():
  """Returns the codec alone, without error feedback."""
  return compress.layer_of(compress.Codec('one_bit', encode, decode, bounds=compress.KEPT))
