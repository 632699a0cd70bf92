"""What the commands share."""

import dataclasses
import pathlib
from typing import Annotated, Optional

from tyro.conf import Positional, arg

Experiment = Annotated[
  Positional[pathlib.Path],
  arg(help='TOML file of the experiment, or the name of a shipped one.', metavar='CONFIG'),
]
# Not `Path | None`: of that, tyro asks typeguard, which takes 0.1 s to import.
MaybePath = Optional[pathlib.Path]  # noqa: UP045
DataDir = Annotated[
  MaybePath,
  arg(
    help='Folder of prepared data sets.',
    metavar='PATH',
    help_behavior_hint='(default: $FEDJAX_MEM_DATA or ~/.cache/fedjax_mem/data)',
  ),
]
NoCache = Annotated[
  bool,
  arg(help='Compile everything again: no cache in $FEDJAX_MEM_CACHE or ~/.cache/fedjax_mem.'),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A command of the command line."""

  debug: Annotated[bool, arg(help='Show the traceback of an error.')] = False


def text(path: pathlib.Path | None) -> str | None:
  """Returns a path as text."""
  return None if path is None else str(path)
