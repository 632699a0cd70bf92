"""Text files by author, as sequences of tokens for next-token prediction."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.own import _shared
from fedjax_mem.data.preprocess import Tokens
from fedjax_mem.data.table import Table
from fedjax_mem.data.text import PAD
from fedjax_mem.tasks import NextToken

_LEVELS: dict[str, Callable[[str], list[str]]] = {'characters': list, 'words': str.split}
_MOST = {'characters': 1000, 'words': 10_000}


def from_texts(
  path: Any,
  *,
  level: str = 'characters',
  length: int = 80,
  vocabulary: int | None = None,
  test_share: float = 0.2,
  test_seed: int = 0,
) -> Table:
  """Returns the texts of a folder, one client an author, cut into sequences.

  An author is a file `<author>.txt`, or a folder with .txt files; UTF-8. The ids of tokens are as
  in `data.text`: 0 is padding, 1 … V the most frequent tokens of all texts (ties by their code
  points), then any unknown token, the beginning and the end of a text. An example is L + 1 ids, of
  which the first L are the inputs and the last L the labels.

  >>> import pathlib, tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   _ = pathlib.Path(folder, 'ann.txt').write_text('abba')
  ...   table = from_texts(folder, length=5, test_share=0)
  >>> [table.labels[i] for i in table.arrays['x'][0]], table.clients
  (['<begin>', 'a', 'b', 'b', 'a'], ('ann',))

  Args:
    path: the folder.
    level: what a token is: 'characters', or 'words', which lie between white space.
    length: L, tokens of a sequence.
    vocabulary: V, at most so many tokens; None: 1,000 characters or 10,000 words.
    test_share: share of each author's sequences that is the test set, in [0, 1).
    test_seed: seed of the draw of that share.

  Raises:
    ValueError: no author, one without text, or a file that is no UTF-8; it is named.
  """
  split = _LEVELS[validate.one_of(_LEVELS, level=level)]
  validate.integer(length=length)
  most = _MOST[level] if vocabulary is None else validate.integer(vocabulary=vocabulary)
  folder = _shared.existing(path, 'path', folder=True)
  texts = {who: [split(_read(x)) for x in files] for who, files in _authors(folder).items()}
  for who, found in texts.items():
    if not any(found):
      raise ValueError(f'author {who!r} in {folder} must have some text, got none.')
  known = _frequent((text for found in texts.values() for text in found), most)
  ids = {token: i for i, token in enumerate(known, 1)}
  rows = {who: [_encode(x, ids, length) for x in found if x] for who, found in texts.items()}
  whole = np.concatenate([x for found in rows.values() for x in found])
  owners = np.repeat(np.arange(len(rows)), [sum(map(len, found)) for found in rows.values()])
  made = _shared.table_of(
    folder.name,
    _shared.Rows(np.ascontiguousarray(whole[:, :-1]), whole[:, 1:], owners),
    None,
    test_share=test_share,
    test_seed=test_seed,
    task=NextToken(PAD),
    what='tokens',
    num_classes=len(ids) + 4,
    labels=('<pad>', *known, '<unknown>', '<begin>', '<end>'),
    preprocess=Tokens(),
  )
  return made._replace(clients=tuple(rows))


def _frequent(texts: Iterable[list[str]], most: int) -> list[str]:
  """Returns the most frequent tokens, ties by their code points."""
  counts = Counter(token for text in texts for token in text)
  return [x for x, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]


def _authors(folder: Path) -> dict[str, list[Path]]:
  """Returns author -> files."""
  found = {x.stem: [x] for x in sorted(folder.glob('*.txt')) if x.is_file()}
  for place in sorted(x for x in folder.iterdir() if x.is_dir()):
    if place.name in found:
      raise ValueError(f'author {place.name!r} in {folder} must be a file or a folder, got both.')
    files = sorted(place.rglob('*.txt'))
    if not files:
      raise ValueError(f'{place} must hold .txt files of an author, got none.')
    found[place.name] = files
  if not found:
    raise ValueError(f'{folder} must hold a .txt file or a folder of each author, got none.')
  return found


def _read(file: Path) -> str:
  try:
    return file.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{file} must be a text in UTF-8, got {error}.') from error


def _encode(tokens: Iterable[str], ids: dict[str, int], length: int) -> np.ndarray:
  """Returns the ids [n, length + 1] int32 of a text; the last row is padded."""
  unknown = len(ids) + 1
  found = [unknown + 1, *(ids.get(x, unknown) for x in tokens), unknown + 2]
  rows = -(-len(found) // (length + 1))
  padded = np.full(rows * (length + 1), PAD, np.int32)
  padded[: len(found)] = found
  return padded.reshape(rows, length + 1)
