"""The plan of a run: what it will take, said before anything is compiled or written.

Bytes are exact, and so is the number of programs. The peak of the program of rounds is an estimate
(`engine/liveness.py`), which `compile` puts the compiler's own number beside.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjax_mem.config import build
from fedjax_mem.config.load import Config
from fedjax_mem.config.parts import Parts
from fedjax_mem.config.sections import PrivacySection
from fedjax_mem.config.start import pinned
from fedjax_mem.core import IncompatibleStages, Personal, keys, tree
from fedjax_mem.engine import Execution, describe, outline, table_bytes
from fedjax_mem.engine.outline import Outline, Peak
from fedjax_mem.runner import devices, examples, ledgers, prepare, tuning
from fedjax_mem.runner.prepare import Given
from fedjax_mem.runner.traffic import HIGH, Range, Traffic

MB = 10**6


class Program(NamedTuple):
  """A kind of program that a run compiles.

  Attributes:
    what: what it is for.
    name: its name in the compiler's log, after `jit_`.
    least: how many are compiled, at least.
    most: how many at most; as `least` where that is known.
  """

  what: str
  name: str
  least: int = 1
  most: int = 1


class Room(NamedTuple):
  """Memory that there is.

  Attributes:
    bytes: how much.
    whose: 'a device', or 'all devices' where these share it.
    source: where the number is from.
  """

  bytes: int
  whose: str
  source: str


class Plan(NamedTuple):
  """What a run will take. Sizes are bytes.

  Attributes:
    execution: how the cohort is laid out, in words.
    picked: how that was chosen: 'asked', 'table', 'cache', or 'to be measured', when the run
      measures candidates and this is the plan of the first.
    side_by_side: clients at a time on a device.
    devices: how many.
    steps: of the loop over the cohort, on each device.
    capacity: rows of a cohort, with padding.
    cohort: clients of a round, expected.
    steady: whether each round has exactly so many clients, all of which arrive.
    pooled: whether the round is one gradient over all examples of the cohort.
    data: the examples as a device holds them; of one segment if they are streamed.
    streamed: whether examples are streamed, so that there may be two segments.
    test: the test set, over all devices.
    parameters: of the model.
    client_states: layer -> its table [N, …], over all devices if `divided`, else on each.
    divided: whether these tables are divided over the devices.
    server_states: layer -> its state.
    up: (least, most) that a client sends in a round; None: unknown.
    down: (least, most) that a client is sent in a round; None: unknown.
    stack: the gathered messages [C, D] over all devices, of rounds with a cohort side; else 0.
    peak: of the program of rounds, on each device, estimated.
    compiled: the same by the compiler, or None.
    programs: what a new run compiles.
    resumed: what a resumed run compiles besides.
    room: the memory there is.
    needed: bytes of that memory which the run takes.
    chunk: None if the plan fits, else the largest `execution.chunk` that does; 0: none does.
    looped: whether one client after another fits; None: it was not asked, since the plan fits.
  """

  execution: str
  picked: str
  side_by_side: int
  devices: int
  steps: int
  capacity: int
  cohort: float
  steady: bool
  pooled: bool
  data: int
  streamed: bool
  test: int
  parameters: int
  client_states: Mapping[str, int]
  divided: bool
  server_states: Mapping[str, int]
  up: Range
  down: Range
  stack: int
  peak: Peak
  compiled: Peak | None
  programs: tuple[Program, ...]
  resumed: tuple[Program, ...]
  room: Room
  needed: int
  chunk: int | None
  looped: bool | None

  @property
  def fits(self) -> bool:
    """Whether the run fits the memory."""
    return self.needed <= self.room.bytes


@keys.fixed()
def plan(
  config: Config,
  *,
  params: Any = None,
  data: Given = None,
  data_dir: str | None = None,
  memory_mb: float | None = None,
  compile: bool = False,
) -> Plan:
  """Returns what a run will take; it compiles nothing, and writes nothing.

  >>> found = plan(fm.load_config('quickstart', ['execution.devices=1']))
  >>> found.side_by_side, found.steps, found.up, found.fits
  (10, 1, (19265, 19265), True)

  Args:
    config: the experiment.
    params: as for `run`.
    data: as for `run`.
    data_dir: as for `run`.
    memory_mb: the memory in 10**6 bytes, of a device, or of all host devices together; None: what
      there is.
    compile: whether to compile the program of rounds, for the compiler's own number.

  Raises:
    ValueError: bad input, as for `run`.
  """
  setup = _Setup(config, params, data, data_dir)
  made = setup.outline()
  setting, layers = made.setting, setup.parts.layers
  state = jax.eval_shape(made._init, made.params, made.population, *made._keys(None, None))
  up, down = Traffic(made).planned(outline.noted(made, HIGH))
  draws = layers.draws
  steady = draws.scheme != 'poisson' and draws.expected == draws.capacity
  peak = outline.peak(made)
  room, needed = _room(memory_mb, made), setup.needed(made, peak)
  chunk, looped = (None, None) if needed <= room.bytes else setup.smaller(room)
  side_by_side = outline.at_once(made)
  return Plan(
    execution=describe(setting.layout),
    picked=setup.picked,
    side_by_side=side_by_side,
    devices=setting.layout.devices,
    steps=setting.capacity // (side_by_side * setting.layout.devices),
    capacity=setting.capacity,
    cohort=draws.expected,
    steady=steady and len(layers.selecting) == 1,
    pooled=setting.pool is not None,
    data=tree.nbytes(made.population),
    streamed=setup.streamed,
    test=setup.test,
    parameters=tree.nbytes(made.params),
    client_states=table_bytes(setting, made.params, made.population),
    divided=setting.divided,
    server_states={name: tree.nbytes(x) for name, x in state.servers.items()},
    up=up,
    down=down,
    stack=_stack(made),
    peak=peak,
    compiled=outline.compiled(made) if compile else None,
    programs=setup.programs(made),
    resumed=_resumed(made),
    room=room,
    needed=needed,
    chunk=chunk,
    looped=looped,
  )


class _Setup:
  """The parts of a run as shapes, and the plans that they make under one execution or another."""

  def __init__(self, config: Config, params: Any, data: Given, data_dir: str | None):
    self.config, self.start = pinned(config, params)
    note = devices.prepare(config.execution.devices)
    devices.start()
    self.parts = build.build(self.config, data_dir, self.start, data, draw=False)
    self.claimed(self.parts)
    self.population: Any = None
    self.streamed = False
    self._read_source()
    self.test = sum(x.nbytes for x in self.parts.data.test.values())
    wanted = prepare.asked(self.config, {}, note)
    found = tuning.known(wanted, self.parts, prepare.work(self.config, self.parts))
    first = Execution(devices=wanted.devices, **tuning.CANDIDATES[0])
    self.execution, self.picked = found or (first, 'to be measured')

  def claimed(self, parts: Parts) -> None:
    """Raises `IncompatibleStages` where privacy is asked for and no layer adds noise."""
    if self.config.privacy != PrivacySection() and not parts.layers.claims:
      raise IncompatibleStages(
        f'a claim of privacy is expected, and no layer of {[x.name for x in parts.layers]!r} '
        'states that it adds noise (Noises): add one, such as central with a noise_multiplier > 0.'
      )

  def _read_source(self) -> None:
    """Sets the shapes of the examples on a device, and the rounds of a segment."""
    cap = self.config.execution.stream_above_mb
    longest = prepare.longest_segment(self.config)

    def shapes() -> Any:
      found = examples.source(self.parts.data, self.parts.layers, cap, longest)
      self.shape, self.max_rounds = found.shape, found.max_rounds
      self.streamed = isinstance(found, examples.Streamed)
      found.close()
      return found.population

    self.population = jax.eval_shape(shapes)

  def outline(self, execution: Execution | None = None) -> Outline:
    """Returns the simulation of the run on shapes."""
    return outline.outlined(
      self.parts.layers,
      self.parts.like,
      self.population,
      seed=self.config.seed,
      execution=execution or self.execution,
      max_rounds=self.max_rounds,
      shape=self.shape,
      transforms=(self.parts.data.preprocess,),
    )

  def needed(self, made: Outline, peak: Peak) -> int:
    """Returns the bytes that the run takes of a device, or of all if they share their memory."""
    each = peak.total + (tree.nbytes(made.population) if self.streamed else 0)
    devices = made.setting.layout.devices
    return each * devices + self.test if _shared(made) else each + -(-self.test // devices)

  def smaller(self, room: Room) -> tuple[int, bool]:
    """Returns (the largest chunk that fits, 0 for none; whether one client at a time does)."""

    def fits(**execution: Any) -> bool:
      made = self.outline(Execution(devices=self.execution.devices, **execution))
      needed: int = self.needed(made, outline.peak(made))
      return needed <= room.bytes

    most = self.outline(Execution(mode='vmap', devices=self.execution.devices)).setting.layout.chunk
    if not fits(mode='loop'):
      return 0, False
    return largest(lambda chunk: fits(mode='chunk', chunk=chunk), most), True

  def programs(self, made: Outline) -> tuple[Program, ...]:
    """Returns what a new run compiles, in this process alone and with an empty cache."""
    config, layers = self.config, self.parts.layers
    found = []
    if self.start is None:
      found.append(Program('initial parameters', '<lambda>'))
    if made.setting.layout.mesh.devices.flat[0].platform == 'cpu':
      found.append(Program("which of the compiler's options it knows", '<lambda>'))
    if self.picked == 'to be measured':
      most = len(tuning.CANDIDATES)
      found.append(Program('initial state of a candidate', 'initial_state', 1, most))
      found.append(Program('segment of a candidate', '_segment', 1, most))
    found += [Program('initial state', 'initial_state'), Program('segment of rounds', '_segment')]
    found.append(Program('evaluation on the test set', 'share'))
    if self.parts.data.held is not None:
      found.append(Program('evaluation on what clients hold out', 'share'))
    opened = ledgers.open_ledgers(config, layers, self.parts.data.counts, made.setting.specs)
    ahead = set()
    if opened is not None and opened.local:
      ahead.add(self.max_rounds if layers.blind else 1)
    if self.streamed:
      ahead.add(2 * self.max_rounds if layers.blind else 1)
    if ahead:
      found.append(Program('clients of the next rounds', 'peek', len(ahead), len(ahead)))
    if layers.having(Personal):
      found.append(Program('mean of what clients keep', 'mean'))
    return tuple(found)


def _resumed(made: Outline) -> tuple[Program, ...]:
  """Returns what a resumed run compiles besides what a new one does."""
  return (Program('noise drawn again', 'drawn_again'),) if made.claims else ()


def largest(fits: Callable[[int], bool], most: int) -> int:
  """Returns the largest chunk up to `most` that fits, or 0, if none that is larger than one does.

  >>> largest(lambda chunk: chunk <= 6, 50)
  6

  Args:
    fits: chunk -> whether it fits; no chunk does that is larger than one that does not.
    most: the largest that is asked for, >= 1.
  """
  low, high = 0, 1
  while high <= most and fits(high):
    low, high = high, 2 * high
  high = min(high, most + 1)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def _stack(made: Outline) -> int:
  """Returns the bytes of the messages of a whole cohort, if a cohort side needs them; else 0."""
  setting = made.setting
  sides = [x.name for x in setting.layers if x.cohort is not None]
  return max((setting.capacity * tree.nbytes(setting.specs[x]) for x in sides), default=0)


def _shared(made: Outline) -> bool:
  """Returns whether the devices share one memory, as those of a host do."""
  platform: str = made.setting.layout.mesh.devices.flat[0].platform
  return platform == 'cpu'


def _room(given: float | None, made: Outline) -> Room:
  """Returns the memory there is, or that is given."""
  whose = 'all devices' if _shared(made) else 'a device'
  if given is not None:
    return Room(round(given * MB), whose, 'given')
  if _shared(made):
    return Room(_physical(), whose, 'of this machine')
  stats = made.setting.layout.mesh.devices.flat[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    raise ValueError('memory must be given: the device does not say how much it has.')
  return Room(stats['bytes_limit'], whose, 'of the device')


def _physical() -> int:
  """Returns the bytes of memory of this machine, or of its control group if that has fewer."""
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    text = pathlib.Path('/sys/fs/cgroup/memory.max').read_text().strip()
  except OSError:
    return whole
  return min(whole, int(text)) if text.isdigit() else whole
