"""The command `fedjax-mem table compression`: tables that are regenerated from runs."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Regenerate a table: run what is missing, then write the table and its plot.

  compression: bytes of a client's message against test accuracy, for every codec.

  Runs that are finished are not repeated: stopped, the command goes on when it is given again.
  Example: fedjax-mem table compression --seeds 0 1 2
  """

  which: Annotated[Positional[Literal['compression']], arg(help='Which table.')]
  config: Annotated[
    Positional[pathlib.Path], arg(help='TOML file of the experiment without compression.')
  ] = pathlib.Path('configs/fashion_mnist_fedavg.toml')
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  codecs: Annotated[
    tuple[str, ...], arg(help='Which entries (default: all); an unknown one lists them.')
  ] = ()
  rounds: Annotated[int | None, arg(help='Rounds of each run (default: as in the file).')] = None
  seeds: Annotated[tuple[int, ...], arg(help='Seeds: one run of every codec for each.')] = (0,)
  out: Annotated[pathlib.Path, arg(help='Folder of the runs, the table and the plot.')] = (
    pathlib.Path('runs/compression')
  )
  data_dir: Annotated[
    pathlib.Path | None,
    arg(help='Where prepared data sets are (default: $FEDJAX_MEM_DATA, or a folder of the user).'),
  ] = None
  debug: Annotated[bool, arg(help='Show the traceback of an error.')] = False

  def __call__(self) -> None:
    """Runs what is missing and prints the table."""
    from fedjax_mem.experiment.config import load_config

    base = load_config(self.config, self.set)
    from fedjax_mem.experiment import table
    from fedjax_mem.report.tables import format_table

    entries = table.compression(
      base,
      self.out,
      codecs=self.codecs or tuple(table.CODECS),
      seeds=self.seeds,
      rounds=self.rounds,
      data_dir=None if self.data_dir is None else str(self.data_dir),
    )
    print(format_table(table.rows(entries)))
    print(f'table: {self.out / "compression.md"}, plot: {self.out / "compression.png"}')
