"""The command `fedjax-mem launch`: one run in several processes of this machine."""

import dataclasses
from typing import Annotated, Optional

import tyro
from tyro.conf import arg, subcommand

from fedjax_mem.cli.run import Resume, Run

_POSITIONAL = ('config', 'run')
Launched = Annotated[Run, subcommand('run')] | Annotated[Resume, subcommand('resume')]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
  """Run or resume an experiment in several processes of this machine, and watch them.

  Output of the first is shown; all else that they say is in the folder `logs` of the run. If one
  dies or does not answer, all are ended, and the last line says which, and how to go on.

  Example: fedjax-mem launch --processes 2 run quickstart --set seed=1
  """

  processes: Annotated[int, arg(help='Number of processes.', metavar='P')]
  # Not `int | None`: as in `shared.MaybePath`.
  devices: Annotated[
    Optional[int],  # noqa: UP045
    arg(
      help='Host devices of each process on a CPU.',
      metavar='D',
      help_behavior_hint='(default: the cores, divided by the processes)',
    ),
  ] = None
  command: tyro.conf.OmitSubcommandPrefixes[Launched]

  @property
  def debug(self) -> bool:
    """Whether to show the traceback of an error."""
    return self.command.debug

  def __call__(self) -> None:
    """Runs the processes."""
    from fedjax_mem.runner.launching import launch

    if isinstance(self.command, Run):
      out = self.command.out
    else:
      # Beside the folder itself: what a link leads to may be in another file system.
      out = self.command.run.resolve().parent
      if (self.command.run / 'sweep.json').is_file():
        raise ValueError(
          f'RUN must be the folder of a run, got a sweep, {str(self.command.run)!r}.'
        )
      if not self.command.run.is_dir():
        raise ValueError(f'RUN must be the folder of a run, got {str(self.command.run)!r}.')
    launch(words(self.command), self.processes, out=out, devices=self.devices, debug=self.debug)


def words(command: Run | Resume) -> list[str]:
  """Returns the words of a command line from which a command is read again.

  Args:
    command: with any options.
  """
  said = ['run', str(command.config)] if isinstance(command, Run) else ['resume', str(command.run)]
  for field in dataclasses.fields(command):
    value, option = getattr(command, field.name), '--' + field.name.replace('_', '-')
    if field.name in _POSITIONAL:
      continue
    if isinstance(value, bool):
      said += [option] * value
    elif isinstance(value, tuple):
      said += [x for item in value for x in (option, item)]
    elif value is not None:
      said.append(f'{option}={value}')
  return said
