"""The commands `fedjax-mem run` and `fedjax-mem resume`."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from fedjax_mem.cli.shared import Command, DataDir, Experiment, NoCache, text

if TYPE_CHECKING:
  from fedjax_mem.runner.ending import Result

Distributed = Annotated[
  bool,
  arg(help='Join the processes that Slurm, Open MPI, a TPU pod or GKE has started.'),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
  """Run an experiment: train, evaluate, and leave a folder with metrics, plots and a report.

  Example: fedjax-mem run quickstart --set server.learning_rate=0.5 --set seed=1
  """

  config: Experiment
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  out: Annotated[pathlib.Path, arg(help='Folder in which the run folder is made.')] = pathlib.Path(
    'runs'
  )
  data_dir: DataDir = None
  quiet: Annotated[bool, arg(help='No progress bar.')] = False
  no_cache: NoCache = False
  distributed: Distributed = False

  def __call__(self) -> None:
    """Runs the experiment."""
    from fedjax_mem.config.load import load_config

    config = load_config(self.config, self.set)  # first: its errors show before slow imports
    from fedjax_mem.runner import devices
    from fedjax_mem.runner.loop import run

    if self.no_cache:
      devices.forget_compiled()
    where, how = text(self.data_dir), self.distributed
    tell(run(config, self.out, data_dir=where, quiet=self.quiet, distributed=how))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Command):
  """Resume an unfinished run, or sweep, from its last checkpoint, as if it had never stopped."""

  run: Annotated[Positional[pathlib.Path], arg(help='Folder of the run or sweep.', metavar='RUN')]
  data_dir: DataDir = None
  quiet: Annotated[bool, arg(help='No progress bar.')] = False
  no_cache: NoCache = False
  distributed: Distributed = False

  def __call__(self) -> None:
    """Resumes the run."""
    from fedjax_mem.runner import devices
    from fedjax_mem.runner.loop import resume

    if self.no_cache:
      devices.forget_compiled()
    if (self.run / 'sweep.json').is_file():
      from fedjax_mem.cli.sweep import tell as tell_sweep
      from fedjax_mem.studies.sweeps.sweep import resume as resume_sweep

      tell_sweep(resume_sweep(self.run, data_dir=text(self.data_dir), quiet=self.quiet))
      return
    where, how = text(self.data_dir), self.distributed
    tell(resume(self.run, data_dir=where, quiet=self.quiet, distributed=how))


def tell(result: 'Result') -> None:
  """Prints the last scores of a run, and where it is; of several processes the first does."""
  from fedjax_mem.runner.cluster import current

  if not current().leads:
    return
  if not result.metrics:
    print(f'no record is left; folder: {result.folder}')
    return
  last = result.metrics[-1]
  covered = last.get('covered', last)  # without a claim nothing is marked
  scores = ', '.join(
    f'{name.replace("_", " ")} {last[name]:.4f}{"" if name in covered else " (not covered)"}'
    for name in (
      *('test_accuracy', 'test_r2', 'test_mean_average_precision', 'test_perplexity', 'test_loss'),
      *('client_accuracy_mean', 'client_accuracy_worst'),
    )
    if name in last
  )
  print(f'round {last["round"]}: {scores}')
  print(f'folder: {result.folder} (report.html, learning_curve.png, metrics.jsonl)')
