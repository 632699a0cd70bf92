"""Folders of data: where prepared data are written, and where downloaded files are looked for.

Prepared data are in one folder, the first of: the argument `data_dir` (`--data-dir`), the
environment variable FEDJAX_MEM_DATA, `fedjax_mem/data` in the user's cache. Files that the user has
downloaded are looked for in the argument `manual_dir`. Without it they are looked for in the folder
of prepared data, then in folders where system packages install them.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

VARIABLE = 'FEDJAX_MEM_DATA'


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
  """Returns the folder of prepared data; it need not exist."""
  chosen = data_dir or os.environ.get(VARIABLE)
  if chosen:
    return Path(chosen).expanduser()
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return Path(cache).expanduser() / 'fedjax_mem' / 'data'


def manual_folders(
  name: str,
  data_dir: str | os.PathLike[str] | None,
  manual_dir: str | os.PathLike[str] | None,
  known: Sequence[str] = (),
) -> list[Path]:
  """Returns the folders, in order, that may hold the downloaded files of a data set.

  Args:
    name: name of the data set.
    data_dir: as for `data_folder`.
    manual_dir: if given, the only folder.
    known: folders where system packages install the files.
  """
  if manual_dir is not None:
    return [Path(manual_dir).expanduser()]
  root = data_folder(data_dir)
  short = name.split('/', maxsplit=1)[0]
  return [root / 'manual' / short, root / 'manual', root / short, root, *map(Path, known)]


def first_with(folders: Sequence[Path], holds: Callable[[Path], bool]) -> Path | None:
  """Returns the first folder for which `holds` is true, or None."""
  return next((folder for folder in folders if folder.is_dir() and holds(folder)), None)
