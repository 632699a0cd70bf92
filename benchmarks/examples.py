"""The examples of the works: Fashion-MNIST, and sequences of tokens that are drawn here."""

import numpy as np

from fedjax_mem import data

VOCABULARY = 90  # ids of tokens, 0 (padding) included; none of the sequences has padding
TEST = 200  # test sequences

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load(name: str, number: int, data_dir: str | None) -> Arrays:
  """Returns x, y, and the test set's x and y.

  Args:
    name: 'fashion_mnist': x [60000, 28, 28] uint8, y [60000] int32; 'fashion_mnist_32x32x3': the
      first of them, framed with zeros and repeated for three channels, and 500 of the test set; or
      'tokens_T': x [number, T] uint8, and y int32 the token after each.
    number: examples that the clients hold.
    data_dir: folder of prepared data.
  """
  if name.startswith('tokens_'):
    length = int(name.removeprefix('tokens_'))
    rows = sequences(number + TEST, length + 1, seed=0)
    x, y = rows[:, :-1], rows[:, 1:].astype(np.int32)
    return x[:number], y[:number], x[number:], y[number:]
  # One client: only the arrays are wanted.
  all_of = data.load('fashion_mnist', partition='iid', num_clients=1, data_dir=data_dir)
  x, y, test_x, test_y = (part[k] for part in (all_of.arrays, all_of.test) for k in 'xy')
  if name == 'fashion_mnist':
    return x, y, test_x, test_y
  return _framed(x[:number]), y[:number], _framed(test_x[:500]), test_y[:500]


def _framed(x: np.ndarray) -> np.ndarray:
  """Returns images [T, 32, 32, 3] of images [T, 28, 28] or [T, 28, 28, 1]."""
  padded = np.pad(x.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
  return np.repeat(padded[..., None], 3, axis=3)


def sequences(number: int, length: int, seed: int) -> np.ndarray:
  """Returns sequences [number, length] uint8 of ids 1 ... 89 from a Markov chain of order 2.

  A token is, with probability 0.5, a function of the one before, with 0.3 a function of the two
  before, and with 0.2 drawn by Zipf's law. The best guess is right on about half of them.
  """
  rng = np.random.default_rng(seed)
  count = VOCABULARY - 1
  one, two = rng.integers(1, VOCABULARY, count + 1), rng.integers(1, VOCABULARY, (count + 1,) * 2)
  law = 1 / np.arange(1, count + 1)
  drawn = rng.choice(np.arange(1, VOCABULARY), (length, number), p=law / law.sum())
  kind = rng.random((length, number))
  for t in range(2, length):
    before, last = drawn[t - 2], drawn[t - 1]
    told = np.where(kind[t] < 0.5, one[last], two[before, last])
    drawn[t] = np.where(kind[t] < 0.8, told, drawn[t])
  return drawn.T.astype(np.uint8)
