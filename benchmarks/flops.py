"""Operations of a model's forward pass on one example, in 10**6: counted by formula, not measured.

A multiplication and an addition count as two. Only matrix products and convolutions are counted,
convolutions as direct ones; normalisations, activations and softmaxes are not. An embedding is a
look-up and counts nothing, however it is computed. Attention counts all T x T scores, as in
Chowdhery et al. (2022), arXiv 2204.02311, appendix B, although half of them are masked
and ours leaves out some of these.
"""

import itertools


def conv(side: int, kernel: int, inputs: int, outputs: int) -> float:
  """Returns the operations of a convolution with an output of `side` x `side` pixels."""
  return 2 * side * side * kernel * kernel * inputs * outputs / 1e6


def dense(*sizes: int) -> float:
  """Returns the operations of dense layers between these sizes."""
  return sum(2 * a * b for a, b in itertools.pairwise(sizes)) / 1e6


def cnn() -> float:
  """Returns those of `cnn` on 28 x 28 x 1, 10 classes."""
  return conv(26, 3, 1, 32) + conv(24, 3, 32, 64) + dense(9216, 128, 10)


def lenet() -> float:
  """Returns those of `lenet` on 28 x 28 x 1, 10 classes."""
  return conv(24, 5, 1, 6) + conv(8, 5, 6, 16) + dense(256, 120, 84, 10)


def resnet(side: int, channels: int, width: int, blocks: tuple[int, ...], classes: int) -> float:
  """Returns those of `resnet_gn` on `side` x `side` x `channels`."""
  total, inputs = conv(side, 3, channels, width), width
  for stage, count in enumerate(blocks):
    outputs = width * 2**stage
    for block in range(count):
      if stage and not block:
        side //= 2
        total += conv(side, 1, inputs, outputs)
      total += conv(side, 3, inputs, outputs) + conv(side, 3, outputs, outputs)
      inputs = outputs
  return total + dense(inputs, classes)


def lstm(length: int, embedding: int, width: int, classes: int) -> float:
  """Returns those of `char_lstm` on sequences of `length` tokens."""
  gates = dense(embedding + width, 4 * width) + dense(2 * width, 4 * width)
  return length * (gates + dense(width, classes))


def transformer(length: int, width: int, blocks: int, classes: int) -> float:
  """Returns those of `transformer` on sequences of `length` tokens."""
  products = dense(width, 3 * width) + dense(width, width) + dense(width, 4 * width, width)
  attention = 2 * dense(length, width)  # scores of all heads together, and what they mix
  return length * (blocks * (products + attention) + dense(width, classes))
