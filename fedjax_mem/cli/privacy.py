"""The commands `fedjax-mem privacy epsilon|calibrate|plan`: the privacy cost of a planned run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg, subcommand


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Question:
  """Arguments of every privacy command."""

  population: Annotated[int | None, arg(help='Number of clients in the population, N.')] = None
  sampling_rate: Annotated[
    float | None,
    arg(
      help='Probability that a client is in a Poisson cohort, in place of population and cohort.'
    ),
  ] = None
  delta: Annotated[
    float, arg(help='Target delta, below 1 / N; cohorts cut to their capacity may add 1% of it.')
  ] = 1e-5
  scheme: Annotated[
    Literal['poisson', 'without_replacement', 'cyclic'], arg(help='How a cohort is drawn.')
  ] = 'poisson'
  mechanism: Annotated[
    Literal['gaussian', 'laplace', 'discrete_gaussian'], arg(help='Which noise.')
  ] = 'gaussian'
  accountant: Annotated[
    Literal['auto', 'rdp', 'pld'], arg(help='Which accountant: auto takes the smaller epsilon.')
  ] = 'auto'
  adjacency: Annotated[
    str | None,
    arg(
      help='Neighbouring relation.',
      help_behavior_hint='(default: the one supported for the sampler)',
    ),
  ] = None
  plot: Annotated[pathlib.Path | None, arg(help='Draw epsilon against rounds (PNG).')] = None
  debug: Annotated[bool, arg(help='Show the traceback of an error.')] = False

  def _answer(self, command: str, **given: Any) -> list[dict[str, Any]]:
    from fedjax_mem.account import privacy_table
    from fedjax_mem.core import validate
    from fedjax_mem.report.tables import format_table

    if given.get('target_epsilon') is not None:
      validate.positive(target_epsilon=given['target_epsilon'])
    with _progress() as tell:
      rows = privacy_table(
        command,
        population=self.population,
        sampling_rate=self.sampling_rate,
        delta=self.delta,
        scheme=self.scheme,
        mechanism=self.mechanism,
        accountant=self.accountant,
        adjacency=self.adjacency,
        tell=tell,
        **given,
      )
    print(format_table(rows))
    if self.plot:
      self._draw(rows, self.plot)
    return rows

  def _draw(self, rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    from fedjax_mem import account, mechanisms
    from fedjax_mem.account.table import sampling_of
    from fedjax_mem.report import figures, plots

    curves = {}
    for row in rows:
      path = account.trajectory(
        sampling_of(row),
        mechanisms.find(self.mechanism)(row['noise_multiplier']),
        int(row['rounds']),
        self.delta,
        adjacency=row['adjacency'],
        accountant=row['accountant'].lower(),
      )
      curves[_label(row, rows)] = path.epsilon.tolist()
    who = 'Poisson' if self.population is None else f'N = {self.population:,}'
    title = f'{who}, δ = {self.delta:g}, {rows[0]["noise"]}'
    figures.save(plots.epsilon(curves, title), file)
    print(f'plot: {file}')


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
  """Shows a bar on a terminal's standard error; gives the function that moves it."""
  from rich.console import Console
  from rich.progress import Progress

  console = Console(stderr=True)
  with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
    task = bar.add_task('accounting', total=None)
    yield lambda done, total: bar.update(task, completed=done, total=total)


def _label(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  """Returns a label that distinguishes a row from the others."""
  words = {
    'target': 'ε ≤ {:g}',
    'noise_multiplier': 'noise {:.3g}',
    'cohort': 'cohort {:g}',
    'sampling_rate': 'rate {:.3g}',
    'accountant': '{}',
    'adjacency': '{}',
  }
  differing = [x for x in words if len({other.get(x) for other in rows}) > 1]
  size = 'cohort' if 'cohort' in row else 'sampling_rate'
  chosen = differing or ['noise_multiplier', size]
  return ', '.join(words[x].format(row[x]) for x in chosen).replace('_', '-')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epsilon(_Question):
  """Compute epsilon of a run, by each accountant and adjacency that support it.

  Example: fedjax-mem privacy epsilon --population 3383 --cohort 120 --noise-multiplier 1.2
  --rounds 100; or --sampling-rate 0.0355 in place of population and cohort.
  """

  cohort: Annotated[float | None, arg(help='Clients expected in a cohort.')] = None
  rounds: Annotated[int, arg(help='Rounds of the whole run.')]
  noise_multiplier: Annotated[
    float, arg(help='Standard deviation of the noise over the clip norm.')
  ]

  def __call__(self) -> None:
    """Prints the table."""
    self._answer(
      'epsilon', cohort=self.cohort, rounds=self.rounds, noise_multiplier=self.noise_multiplier
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate(_Question):
  """Find the noise multiplier, the rounds or the cohort for a budget: leave one out, give two.

  Example: fedjax-mem privacy calibrate --population 10000 --target-epsilon 8 --cohort 100
  --rounds 500
  """

  target_epsilon: Annotated[float, arg(help='Budget of the whole run.')]
  cohort: Annotated[float | None, arg(help='Clients expected in a cohort.')] = None
  rounds: Annotated[int | None, arg(help='Rounds of the whole run.')] = None
  noise_multiplier: Annotated[
    float | None, arg(help='Standard deviation of the noise over the clip norm.')
  ] = None

  def __call__(self) -> None:
    """Prints the table."""
    self._answer(
      'calibrate',
      cohort=self.cohort,
      rounds=self.rounds,
      noise_multiplier=self.noise_multiplier,
      target_epsilon=self.target_epsilon,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(_Question):
  """Show the noise for a range of budgets and cohorts, and its size in the average update.

  Example: fedjax-mem privacy plan --population 100000 --cohort 1000 --rounds 1000
  """

  cohort: Annotated[float | None, arg(help='Clients expected in a cohort.')] = None
  rounds: Annotated[int, arg(help='Rounds of the whole run.')]
  target_epsilon: Annotated[
    float | None,
    arg(help='Budget.', help_behavior_hint='(default: the bounds of the privacy levels)'),
  ] = None

  def __call__(self) -> None:
    """Prints the table."""
    self._answer('plan', cohort=self.cohort, rounds=self.rounds, target_epsilon=self.target_epsilon)


Question = (
  Annotated[Epsilon, subcommand('epsilon')]
  | Annotated[Calibrate, subcommand('calibrate')]
  | Annotated[Plan, subcommand('plan')]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyCommands:
  """Compute epsilon of a private run, or the noise, rounds or clients that a budget allows."""

  command: tyro.conf.OmitSubcommandPrefixes[Question]

  @property
  def debug(self) -> bool:
    """Whether to show the traceback of an error."""
    return self.command.debug

  def __call__(self) -> None:
    """Runs the chosen command."""
    self.command()
