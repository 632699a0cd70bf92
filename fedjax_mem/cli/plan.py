"""The command `plan`."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from fedjax_mem.cli.shared import Command, DataDir, Experiment, text

if TYPE_CHECKING:
  from fedjax_mem.runner.planning import Plan
  from fedjax_mem.runner.programs import Program

_UNITS = ('B', 'kB', 'MB', 'GB', 'TB')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRun(Command):
  """Say what a run will take, before anything is compiled: clients at a time, bytes, memory.

  Nothing is written. It exits 1 if the run does not fit the memory, and names what does.
  Example: fedjax-mem plan quickstart --set execution.mode=vmap
  """

  config: Experiment
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  compile: Annotated[
    bool, arg(help="Compile the program of rounds, and show the compiler's own number as well.")
  ] = False
  processes: Annotated[
    int, arg(help='Processes over which devices and examples are divided.', metavar='P')
  ] = 1
  memory: Annotated[
    float | None,
    arg(
      help='Memory in 10**6 bytes: of a device, or of all devices of a CPU in a process together.',
      metavar='MB',
      help_behavior_hint='(default: what there is)',
    ),
  ] = None
  data_dir: DataDir = None
  json: Annotated[bool, arg(help='One JSON object, with sizes in bytes.')] = False

  def __call__(self) -> None:
    """Prints the plan; raises if it does not fit."""
    from fedjax_mem.config.load import load_config

    config = load_config(self.config, self.set)  # first: its errors show before slow imports
    from fedjax_mem.runner.planning import plan

    made = plan(
      config,
      data_dir=text(self.data_dir),
      memory_mb=self.memory,
      processes=self.processes,
      compile=self.compile,
    )
    print(json.dumps(as_json(made), indent=2) if self.json else '\n'.join(lines(made)))
    made.check()


def as_json(plan: 'Plan') -> dict[str, Any]:
  """Returns the plan as JSON holds it; sizes are bytes."""
  parts = plan._asdict()
  for name in ('peak', 'compiled'):
    peak = parts[name]
    parts[name] = None if peak is None else {**peak._asdict(), 'total': peak.total}
  for name in ('programs', 'resumed'):
    parts[name] = [x._asdict() for x in parts[name]]
  return {**parts, 'room': plan.room._asdict(), 'fits': plan.fits}


def lines(plan: 'Plan') -> list[str]:
  """Returns the plan in words, a line each, aligned."""
  rows = [*_cohort(plan), *_held(plan), *_sent(plan), *_memory(plan), *_programs(plan)]
  width = max(len(name) for name, _ in rows)
  return [f'{name:<{width}}  {said}'.rstrip() for name, said in rows]


def _cohort(plan: 'Plan') -> list[tuple[str, str]]:
  exact = 'every round' if plan.steady else 'expected; their number differs from round to round'
  steps = 'step' if plan.steps == 1 else 'steps'
  how = 'one gradient over the examples of the cohort (pooled), ' if plan.pooled else ''
  return [
    ('cohort', f'{plan.cohort:g} clients, {exact}'),
    ('execution', f'{plan.execution}; {plan.picked}'),
    (
      'side by side',
      f'{plan.side_by_side} on a device, {plan.devices} device(s)'
      + f' of {plan.processes} processes' * (plan.processes > 1),
    ),
    ('loop', f'{how}{plan.steps} {steps}; capacity {plan.capacity}'),
  ]


def _held(plan: 'Plan') -> list[tuple[str, str]]:
  where = f'divided over {plan.devices} device(s)' if plan.divided else 'on each device'
  streamed = ', of one segment (streamed: there may be two)' if plan.streamed else ''
  rows = [
    ('examples', f'{size(plan.data)} on each device{streamed}, {plan.examples}'),
    ('test set', f'{size(plan.test)}, divided over the devices'),
    ('parameters', size(plan.parameters)),
  ]
  rows += [(f'clients of {k}', f'{size(x)}, {where}') for k, x in plan.client_states.items() if x]
  rows += [(f'server of {k}', size(x)) for k, x in plan.server_states.items() if x]
  if plan.stack:
    rows.append(('gathered messages', f'{size(plan.stack)}, [C, D] on each device'))
  return rows


def _sent(plan: 'Plan') -> list[tuple[str, str]]:
  rows = []
  for name, each in (('sent up', plan.up), ('sent down', plan.down)):
    if each is None:
      rows.append((name, 'unknown: a layer does not state what it does to messages'))
      continue
    about = '' if plan.steady else 'about '
    whole = tuple(plan.cohort * x for x in each)
    rows.append((name, f'{_range(each)} a client, {about}{_range(whole)} a round'))
  return rows


def _memory(plan: 'Plan') -> list[tuple[str, str]]:
  peak, said = plan.peak, plan.compiled
  rows = [
    (
      'peak of a round',
      f'{size(peak.total)} on each device, estimated: {size(peak.arguments)} of examples and '
      f'states, {size(peak.beside)} beside them',
    )
  ]
  if said is not None:
    off = peak.total / said.total - 1
    rows.append(
      (
        'by the compiler',
        f'{size(said.total)}: {size(said.arguments)} and {size(said.beside)}; the estimate is '
        f'{off:+.0%}',
      )
    )
  fits = 'fits' if plan.fits else 'does not fit'
  room = plan.room
  rows.append(
    ('memory', f'{size(plan.needed)} of {size(room.bytes)} of {room.whose} ({room.source}): {fits}')
  )
  return rows


def _programs(plan: 'Plan') -> list[tuple[str, str]]:
  least, most = (sum(getattr(x, k) for x in plan.programs) for k in ('least', 'most'))
  said = f'{least}' if least == most else f'{least} to {most}'
  what = '; '.join(x.what + _times(x) for x in plan.programs)
  rows = [('programs', f'{said} compiled: {what}')]
  if plan.operations:
    rows.append(('', f'and {plan.operations} single operations, to build the methods'))
  if plan.resumed:
    rows.append(('when resumed', '; '.join(x.what + _times(x) for x in plan.resumed)))
  return rows


def _times(program: 'Program') -> str:
  least, most = program.least, program.most
  if most == 1:
    return ''
  return f' ({least})' if least == most else f' ({least} to {most})'


def _range(each: tuple[float, ...]) -> str:
  """Returns bytes with all of their digits: they are exact."""
  least, most = (f'{x:,.0f}' for x in each)
  return f'{least} B' if least == most else f'{least} to {most} B'


def size(count: float) -> str:
  """Returns bytes in words: below 10**6 all of their digits.

  >>> size(19265), size(47621984)
  ('19,265 B', '47.6 MB')
  """
  if count < 1e6:
    return f'{count:,.0f} B'
  power = min(len(_UNITS) - 1, (len(f'{count:.0f}') - 1) // 3)
  return f'{count / 1000**power:.1f} {_UNITS[power]}'
