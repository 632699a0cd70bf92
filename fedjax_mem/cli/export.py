"""The command `export`."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fedjax_mem.cli.shared import Command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
  """Write the parameters of a run for other programs, and nothing else of it.

  Example: fedjax-mem export runs/quickstart-a58cdc1a --format msgpack
  """

  run: Annotated[Positional[pathlib.Path], arg(help='Folder of the run.', metavar='RUN')]
  format: Annotated[
    Literal['safetensors', 'msgpack', 'orbax'],
    arg(help="Of the file: safetensors, flax's msgpack, or an Orbax folder."),
  ] = 'safetensors'
  out: Annotated[
    pathlib.Path | None,
    arg(help='Path to write.', metavar='PATH', help_behavior_hint='(default: by the run, here)'),
  ] = None

  def __call__(self) -> None:
    """Writes the file."""
    from fedjax_mem.models import saved
    from fedjax_mem.runner.loading import export

    path = export(self.run, self.format, self.out)
    print(f'{path}: SHA-256 of its arrays {saved.digest(saved.read(path))}')
