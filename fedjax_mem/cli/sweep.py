"""The command `fedjax-mem sweep`: an experiment at every point of a grid."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from fedjax_mem.cli.shared import Command, DataDir, Experiment, NoCache, text

if TYPE_CHECKING:
  from fedjax_mem.studies.sweeps.outcome import SweepResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Command):
  """Run an experiment at every point of a grid of settings, for several seeds.

  Runs that differ in numbers alone are compiled as one program and run side by side. Leaves a table
  (Markdown, CSV, LaTeX), curves with bands and a folder of each run. The command can be stopped and
  given again.
  Example: fedjax-mem sweep quickstart --grid client.learning_rate=0.01,0.1,1
  """

  config: Experiment
  grid: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Values of one key: section.key=value,value,…; may be given several times.'),
  ] = ()
  seeds: Annotated[tuple[int, ...], arg(help='Seeds; each point is run for each seed.')] = (0, 1, 2)
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  select: Annotated[
    Literal['validation', 'loss', 'test'] | None,
    arg(
      help='What the best point is chosen by.',
      help_behavior_hint='(default: validation if data.validation is set, else loss)',
    ),
  ] = None
  at_once: Annotated[
    int | None,
    arg(
      help='Runs side by side on a device; 1: one after another.',
      help_behavior_hint='(default: by the size of the model)',
    ),
  ] = None
  out: Annotated[pathlib.Path, arg(help='Folder in which the folder of the sweep is made.')] = (
    pathlib.Path('runs')
  )
  data_dir: DataDir = None
  quiet: Annotated[bool, arg(help='No progress bar.')] = False
  no_cache: NoCache = False

  def __call__(self) -> None:
    """Runs the sweep."""
    from fedjax_mem.config.load import load_config

    config = load_config(self.config, self.set)
    from fedjax_mem.runner import devices
    from fedjax_mem.studies.sweeps.grid import parse
    from fedjax_mem.studies.sweeps.sweep import sweep

    grid = parse(self.grid)
    if self.no_cache:
      devices.forget_compiled()
    result = sweep(
      config,
      grid,
      self.seeds,
      self.out,
      select=self.select,
      at_once=self.at_once,
      data_dir=text(self.data_dir),
      quiet=self.quiet,
    )
    tell(result)


def tell(result: 'SweepResult') -> None:
  """Prints the result of a sweep."""
  from fedjax_mem.studies.sweeps import written

  print(written.summary(result))
  print(f'folder: {result.folder} ({", ".join(written.paths(result.folder))})')
