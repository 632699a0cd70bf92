"""From text to sequences of token ids for next-token prediction.

Ids, as in the baselines of TensorFlow Federated: 0 is padding, 1 … V the vocabulary, V + 1 any
unknown token, V + 2 the beginning and V + 3 the end of a text. An example is L + 1 ids, of which
the first L are the inputs and the last L the targets; the loss ignores targets that are padding.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

# The 86 characters of the vocabulary of TensorFlow Federated's Shakespeare task, in its order.
CHARACTERS = (
  b'dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#\'/37;?bfjnrvzBFJNRVZ"&*.26:\naeimquyAEIMQUY]!%)-159\r'
)
PAD = 0


class Characters:
  """Encodes texts as sequences of bytes, cut into as many examples as necessary.

  Reference: McMahan et al. (2017), arXiv 1602.05629 (sequences of 80); Reddi et al. (2021), arXiv
  2003.00295, appendix C.3.
  """

  num_classes = len(CHARACTERS) + 4

  def __init__(self, length: int = 80):
    self.length = length
    self._table = np.full(256, len(CHARACTERS) + 1, np.uint8)
    self._table[np.frombuffer(CHARACTERS, np.uint8)] = np.arange(1, len(CHARACTERS) + 1)

  def encode(self, text: bytes) -> np.ndarray:
    """Returns ids [n, length + 1] uint8; the last row is padded."""
    ids = np.concatenate(
      [[self.num_classes - 2], self._table[np.frombuffer(text, np.uint8)], [self.num_classes - 1]]
    ).astype(np.uint8)
    rows = -(-len(ids) // (self.length + 1))
    padded = np.full(rows * (self.length + 1), PAD, np.uint8)
    padded[: len(ids)] = ids
    return padded.reshape(rows, self.length + 1)


class Words:
  """Encodes sentences as sequences of words, one example each, cut after `length` words.

  Words lie between single spaces, as in TensorFlow Federated and FedJAX: between two spaces in a
  row, and in an empty text, there is an empty word, which is unknown.

  Reference: Reddi et al. (2021), arXiv 2003.00295, appendix C.4.
  """

  def __init__(self, vocabulary: Sequence[bytes], length: int = 20):
    self.length = length
    self.num_classes = len(vocabulary) + 4
    self._ids = {word: i for i, word in enumerate(vocabulary, 1)}

  def encode(self, text: bytes) -> np.ndarray:
    """Returns ids [1, length + 1] uint16; a sentence of fewer than `length` words gets an end."""
    unknown, begin, end = self.num_classes - 3, self.num_classes - 2, self.num_classes - 1
    words = text.split(b' ')[: self.length]
    ids = [begin, *(self._ids.get(word, unknown) for word in words)]
    if len(words) < self.length:
      ids.append(end)
    row = np.full((1, self.length + 1), PAD, np.uint16)
    row[0, : len(ids)] = ids
    return row


def most_frequent(texts: Iterable[bytes], size: int) -> list[bytes]:
  """Returns the `size` most frequent words, ties in alphabetical order; empty ones are none."""
  counts: Counter[bytes] = Counter()
  for text in texts:
    counts.update(word for word in text.split(b' ') if word)
  return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]
