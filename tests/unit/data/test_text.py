"""Token ids as in the baselines of TensorFlow Federated."""

import numpy as np
import pytest

from fedjax_mem.data.text import CHARACTERS, Characters, Words, most_frequent


def test_vocabulary_has_86_characters_and_90_ids():
  assert len(CHARACTERS) == len(set(CHARACTERS)) == 86
  assert Characters().num_classes == 90


def test_a_text_begins_ends_and_is_padded():
  ids = Characters(5).encode(b'dh~')
  # d and h are the first two of the vocabulary; ~ is in none.
  assert ids.tolist() == [[88, 1, 2, 87, 89, 0]]
  assert ids.dtype == np.uint8


@pytest.mark.parametrize(('length', 'rows'), [(0, 1), (79, 1), (80, 2), (160, 2), (161, 3)])
def test_a_long_text_is_cut_into_examples_without_loss(length, rows):
  ids = Characters().encode(b'd' * length)
  assert ids.shape == (rows, 81)
  assert ids.ravel()[: length + 2].tolist() == [88, *[1] * length, 89]
  assert not ids.ravel()[length + 2 :].any()


def test_words_are_cut_and_marked():
  words = Words([b'how', b'to'], length=4)
  assert words.num_classes == 6
  assert words.encode(b'how to java').tolist() == [[4, 1, 2, 3, 5]]
  assert words.encode(b'how to').tolist() == [[4, 1, 2, 5, 0]]
  assert words.encode(b'how how how how how').tolist() == [[4, 1, 1, 1, 1]]


def test_every_space_ends_a_word_and_an_empty_word_is_unknown():
  """As `tf.strings.split(text, sep=' ')`, by which both baselines split."""
  words = Words([b'how', b'to'], length=4)
  assert words.encode(b'how  to').tolist() == [[4, 1, 3, 2, 5]]
  assert words.encode(b'').tolist() == [[4, 3, 5, 0, 0]]
  assert words.encode(b' how\tto ').tolist() == [[4, 3, 3, 3, 5]]
  assert most_frequent([b'  how', b'', b'to  how'], 9) == [b'how', b'to']


def test_most_frequent_words_break_ties_by_alphabet():
  assert most_frequent([b'b a c', b'c d', b'c'], 3) == [b'c', b'a', b'b']
