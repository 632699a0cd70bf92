"""The command `fedjax-mem`: run and resume experiments, compare them, prepare data, audit them."""

import dataclasses
import gc
import os
import pathlib
import sys
import traceback
import warnings
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from fedjax_mem.cli.cite import Cite
from fedjax_mem.cli.deploy import DeployCommands
from fedjax_mem.cli.export import Export
from fedjax_mem.cli.launch import Launch
from fedjax_mem.cli.plan import PlanRun
from fedjax_mem.cli.privacy import PrivacyCommands
from fedjax_mem.cli.run import Resume, Run
from fedjax_mem.cli.shared import Command, DataDir, Experiment, text
from fedjax_mem.cli.sweep import Sweep
from fedjax_mem.cli.tables import Table
from fedjax_mem.runner import status
from fedjax_mem.runner.output import own_words, steadied

_warned: set[str] = set()
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_WORDLESS = {KeyboardInterrupt: 'stopped by Ctrl-C', MemoryError: 'out of memory'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
  """Write one page that compares several runs, and print their table."""

  runs: Annotated[
    Positional[tuple[pathlib.Path, ...]], arg(help='Folders of runs.', metavar='[RUN [RUN ...]]')
  ]
  out: Annotated[
    pathlib.Path | None,
    arg(
      help='Page to write.',
      metavar='PATH',
      help_behavior_hint='(default: report.html in the run, or in the folder above several)',
    ),
  ] = None

  def __call__(self) -> None:
    """Writes the page."""
    from fedjax_mem.report.html import write_report
    from fedjax_mem.report.tables import runs_table

    if not self.runs:
      raise ValueError('runs must be at least one folder of a run, got none.')
    beside = self.runs[0] if len(self.runs) == 1 else self.runs[0].parent
    page = self.out or beside / 'report.html'
    write_report(self.runs, page)
    print(runs_table(self.runs))
    print(f'page: {page}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataList(Command):
  """List the data sets, where each is found, and what is missing."""

  data_dir: DataDir = None

  def __call__(self) -> None:
    """Prints the table."""
    from fedjax_mem import data
    from fedjax_mem.report.tables import format_table

    rows = [
      {
        'name': x.name,
        'examples': x.size,
        'available': 'yes' if x.available else 'no',
        'where': x.where,
        'remedy': x.remedy,
      }
      for x in data.describe(text(self.data_dir))
    ]
    print(format_table(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrepare(Command):
  """Prepare a data set: read or download its source once, so that runs load it at once."""

  name: Annotated[Positional[str], arg(help='Name: fashion_mnist, fed_emnist, or any of TFDS.')]
  data_dir: DataDir = None
  manual_dir: Annotated[
    pathlib.Path | None, arg(help='Folder of files that you have downloaded yourself.')
  ] = None

  def __call__(self) -> None:
    """Prepares the data set."""
    from fedjax_mem import data

    print(f'prepared in {data.prepare(self.name, text(self.data_dir), text(self.manual_dir))}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataShow(Command):
  """Draw the partition of an experiment: clients by labels."""

  config: Experiment
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  out: Annotated[pathlib.Path, arg(help='Picture to write (PNG).')] = pathlib.Path('partition.png')
  data_dir: DataDir = None

  def __call__(self) -> None:
    """Draws the partition."""
    from fedjax_mem.config.build import load_data
    from fedjax_mem.config.load import load_config
    from fedjax_mem.report import figures, plots

    data = load_data(load_config(self.config, self.set), text(self.data_dir))
    counts, labels = data.shown()
    figures.save(plots.partition(counts, labels, data.name), self.out)
    sizes = data.counts
    print(
      f'{data.name}: {data.num_clients} clients, {sizes.sum()} examples, '
      f'{sizes.min()} to {sizes.max()} a client'
    )
    if data.held is not None:
      held = data.held.offsets[1:] - data.held.offsets[:-1]
      print(f'held out besides: {held.sum()} examples, {held.min()} to {held.max()} a client')
    if data.unused_labels:
      print(f'no client holds examples of the labels {list(data.unused_labels)}')
    print(f'picture: {self.out}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(Command):
  """Show what is installed, which devices and data there are, and how to get what is missing."""

  def __call__(self) -> None:
    """Prints the diagnosis."""
    from fedjax_mem.cli import doctor
    from fedjax_mem.runner import devices

    devices.prepare('auto')  # as a run does, so that the devices shown are those of a run
    doctor.print_checks(doctor.diagnose())


Data = (
  Annotated[DataList, subcommand('list')]
  | Annotated[DataPrepare, subcommand('prepare')]
  | Annotated[DataShow, subcommand('show')]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCommands:
  """List, prepare and look at data sets."""

  command: tyro.conf.OmitSubcommandPrefixes[Data]

  @property
  def debug(self) -> bool:
    """Whether to show the traceback of an error."""
    return self.command.debug

  def __call__(self) -> None:
    """Runs the chosen command."""
    self.command()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Command):
  """Audit a run's privacy claim: how much does an adversary learn of canary clients?

  Prints a lower bound on epsilon (at 95% confidence) beside the accountant's upper bound, by
  membership games on single releases and by one whole run with many canaries, and what a perfect
  attack could have proved: where that is less than the claim, the verdict is void. Needs
  jax-privacy.
  """

  config: Experiment
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  canaries: Annotated[int, arg(help='Canary clients in the one run.')] = 1000
  trials: Annotated[int, arg(help='Releases in each membership game.')] = 100_000
  data_dir: DataDir = None

  def __call__(self) -> None:
    """Prints the findings; raises if a claim is refuted."""
    from fedjax_mem.config.load import load_config

    config = load_config(self.config, self.set)
    from fedjax_mem.report.tables import format_table
    from fedjax_mem.studies import audit

    found = audit.audit(
      config, data_dir=text(self.data_dir), canaries=self.canaries, trials=self.trials
    )
    print(format_table([audit.row(x) for x in found]))
    if any(x.verdict == 'refuted' for x in found):
      raise RuntimeError('the claim is refuted: an attack found more than the accountant allows')


Commands = (
  Annotated[Run, subcommand('run')]
  | Annotated[Resume, subcommand('resume')]
  | Annotated[Launch, subcommand('launch')]
  | Annotated[PlanRun, subcommand('plan')]
  | Annotated[Report, subcommand('report')]
  | Annotated[Cite, subcommand('cite')]
  | Annotated[Export, subcommand('export')]
  | Annotated[DataCommands, subcommand('data')]
  | Annotated[PrivacyCommands, subcommand('privacy')]
  | Annotated[Sweep, subcommand('sweep')]
  | Annotated[Table, subcommand('table')]
  | Annotated[Audit, subcommand('audit')]
  | Annotated[DeployCommands, subcommand('deploy')]
  | Annotated[Doctor, subcommand('doctor')]
)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line and returns its exit code.

  0: done. 1: the run failed, or a plan does not fit. 2: bad input, with a message of one line.
  130, 143 and 129: ended by Ctrl-C, SIGTERM or SIGHUP, a run with a checkpoint. Output that nobody
  reads is lost, and ends nothing.
  """
  if status.PARENT in os.environ:
    status.tie()  # before anything slow: nothing outlives `fedjax-mem launch`
    own_words()
  before = gc.get_threshold()
  # Imports and traces make a million objects and hardly any garbage: a command looks less often.
  gc.set_threshold(50_000, 20, 20)
  try:
    with steadied():
      code = _main(argv)
      _leave(code)
      return code
  finally:
    gc.set_threshold(*before)


def _leave(code: int) -> None:
  """Ends this process, if it is one of a cluster that the command has begun."""
  found = sys.modules.get('fedjax_mem.runner.cluster')  # else there is none
  if found is not None:
    found.current().leave(code)


def _main(argv: list[str] | None) -> int:
  command = tyro.cli(
    Commands,
    prog='fedjax-mem',
    description='A simulator of federated learning in JAX: thousands of clients, rounds compiled.',
    args=argv,
    config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
  )
  warnings.showwarning = _warn
  try:
    command()
  except KeyboardInterrupt as error:
    return _complain(error, getattr(error, 'code', INTERRUPTED), command.debug)
  except (ValueError, FileNotFoundError) as error:
    return _complain(error, BAD_INPUT, command.debug)
  except Exception as error:  # any other error: one line, and the traceback with --debug
    return _complain(error, FAILED, command.debug, foreign=_foreign(error))
  return DONE


def _foreign(error: Exception) -> bool:
  """Returns whether an error comes from elsewhere than this package or the operating system."""
  return not (isinstance(error, OSError) or type(error).__module__.startswith('fedjax_mem.'))


def _complain(error: BaseException, code: int, debug: bool, foreign: bool = False) -> int:
  if debug:
    traceback.print_exception(error)
  words = ' '.join(str(error).split()) or _WORDLESS.get(type(error), type(error).__name__)
  if foreign and not debug:
    words = f'{type(error).__name__}: {words} (--debug shows where)'
  kind = {BAD_INPUT: 'error', FAILED: 'failed'}.get(code, 'interrupted')
  print(f'fedjax-mem: {kind}: {words}', file=sys.stderr)
  return code


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
  """Prints a warning as one line, without the place in the source."""
  del where, more
  text = f'fedjax-mem: warning: {" ".join(str(message).split())}'
  if text not in _warned:
    _warned.add(text)
    print(text, file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
