"""The plan of a run: what it will take, said before anything is compiled or written.

Bytes are exact, and so is the number of programs. The peak of the program of rounds is an estimate
(`engine/liveness.py`), which `compile` puts the compiler's own number beside.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fedjax_mem.config import build
from fedjax_mem.config.load import Config
from fedjax_mem.config.optimizers import learning_rate
from fedjax_mem.config.sections import PrivacySection
from fedjax_mem.config.start import pinned
from fedjax_mem.core import keys, tree, validate
from fedjax_mem.engine import Execution, describe, outline, table_bytes
from fedjax_mem.engine.execution import resolve
from fedjax_mem.engine.mesh import AXIS
from fedjax_mem.engine.outline import Outline, Peak
from fedjax_mem.runner import cluster, devices, examples, prepare, programs, records, room, tuning
from fedjax_mem.runner.prepare import Given
from fedjax_mem.runner.programs import Program
from fedjax_mem.runner.room import MB, Room
from fedjax_mem.runner.traffic import HIGH, Range, Traffic

TO_MEASURE = 'to be measured'


class DoesNotFit(RuntimeError):
  """A run that does not fit the memory; the message names what does."""


class Plan(NamedTuple):
  """What a run will take. Sizes are bytes.

  Attributes:
    execution: how the cohort is laid out, in words.
    picked: how that was chosen: 'asked', 'table', 'cache', or 'to be measured', when the run
      measures candidates and this is the plan of the first.
    side_by_side: clients at a time on a device.
    devices: how many.
    processes: over which they are divided.
    steps: of the loop over the cohort, on each device.
    capacity: rows of a cohort, with padding.
    cohort: clients of a round, expected.
    steady: whether each round has exactly so many clients, all of which arrive.
    pooled: whether the round is one gradient over all examples of the cohort.
    data: the examples as a device holds them; of one segment if they are streamed.
    examples: 'whole' on each device, or 'divided': each has those of its own clients.
    streamed: whether examples are streamed, so that there may be two segments.
    test: the test set, over all devices.
    parameters: of the model.
    client_states: layer -> its table [N, …], over all devices if `divided`, else on each.
    divided: whether these tables are divided over the devices.
    server_states: layer -> its state.
    up: (least, most) that a client sends in a round; None: unknown.
    down: (least, most) that a client is sent in a round; None: unknown.
    stack: the gathered messages [C, D], whole on each device, of rounds with a cohort side; else 0.
    peak: of the program of rounds, on each device, estimated.
    compiled: the same by the compiler, or None.
    programs: what a new run compiles.
    operations: single operations of jax.numpy that are compiled besides, where a method computes
      something from its arguments (a schedule of learning rates). The plan computes it as well: it
      has counted those that were not compiled yet in this process.
    resumed: what a resumed run compiles besides.
    room: the memory there is.
    needed: bytes of that memory which the run, or each of its processes, takes.
    chunk: None if the plan fits, else the largest `execution.chunk` that does; 0: none does.
    looped: whether one client after another fits; None: it was not asked, since the plan fits.
  """

  execution: str
  picked: str
  side_by_side: int
  devices: int
  processes: int
  steps: int
  capacity: int
  cohort: float
  steady: bool
  pooled: bool
  data: int
  examples: str
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
  operations: int
  resumed: tuple[Program, ...]
  room: Room
  needed: int
  chunk: int | None
  looped: bool | None

  @property
  def fits(self) -> bool:
    """Whether the run fits the memory."""
    return self.needed <= self.room.bytes

  def check(self) -> None:
    """Raises `DoesNotFit`, which names the largest chunk that does fit, unless the run fits."""
    if self.fits:
      return
    sizes = self.needed, self.room.bytes
    need, there = (f'{x / MB:,.1f} MB' for x in sizes)
    if need == there or min(sizes) < MB:
      need, there = (f'{x:,} B' for x in sizes)
    said = f'the run must fit the {there} of {self.room.whose} ({self.room.source}), got {need}'
    if self.chunk:
      raise DoesNotFit(f'{said}; execution.mode = "chunk" with execution.chunk = {self.chunk} does')
    if self.looped:
      raise DoesNotFit(f'{said}; only execution.mode = "loop" does, one client at a time')
    alone = f'its examples and states alone take {self.peak.arguments / MB:,.1f} MB of each device'
    raise DoesNotFit(
      f'{said}; even one client at a time does not (execution.mode = "loop"): {alone}'
    )


@keys.fixed()
def plan(
  config: Config,
  *,
  params: Any = None,
  data: Given = None,
  data_dir: str | None = None,
  memory_mb: float | None = None,
  processes: int = 1,
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
    memory_mb: the memory in 10**6 bytes, of a device, or of all host devices of a process together;
      None: what there is, of a CPU its share for each process.
    processes: over which the devices are to be divided, and with `execution.data = "auto"` the
      examples. The plan itself is made in one.
    compile: whether to compile the program of rounds, for the compiler's own number.

  Raises:
    ValueError: bad input, as for `run`.
  """
  config = _divided(config, validate.integer(processes=processes))
  setup = _Setup(config, params, data, data_dir, processes)
  made = setup.outline(setup.execution)
  peak = outline.peak(made)
  there, needed = room.of(made, memory_mb, processes), setup.needed(made, peak)
  chunk, looped = (None, None) if needed <= there.bytes else setup.smaller(there)
  return Plan(
    **_cohort(made),
    **_states(made),
    picked=setup.picked,
    processes=processes,
    streamed=setup.streamed,
    test=setup.test,
    peak=peak,
    compiled=outline.compiled(made) if compile else None,
    programs=setup.programs(made),
    operations=setup.operations,
    resumed=programs.of_resume(made),
    room=there,
    needed=needed,
    chunk=chunk,
    looped=looped,
  )


def _divided(config: Config, processes: int) -> Config:
  """Returns the configuration as the processes take it; where they are several, it starts jax.

  Raises:
    ValueError: its devices cannot be divided.
  """
  wanted = config.execution
  cluster.devices_of_each(None, wanted.devices, processes)
  if processes == 1:
    return config
  count = wanted.devices
  if count == 'auto':  # as `launch` divides the cores
    count = max(1, devices.cores() // processes) * processes
  devices.prepare(count)
  devices.start()
  if jax.default_backend() == 'cpu' and len(jax.devices()) < int(count):
    raise ValueError(
      f'processes must have {count} devices in all, got {len(jax.devices())}: jax had started '
      'already, so plan it in a process of its own.'
    )
  if wanted.devices == 'auto' and jax.default_backend() != 'cpu':
    count = len(jax.devices())
    cluster.devices_of_each(None, count, processes)
  data = 'divided' if wanted.data == 'auto' else wanted.data
  return dataclasses.replace(
    config, execution=dataclasses.replace(wanted, data=data, devices=count)
  )


def _cohort(made: Outline) -> dict[str, Any]:
  """Returns what a plan says of the cohort and of its messages."""
  setting, draws = made.setting, made.setting.layers.draws
  at_once, devices = outline.at_once(made), setting.layout.devices
  up, down = Traffic(made).planned(outline.noted(made, HIGH))
  always = draws.scheme != 'poisson' and draws.expected == draws.capacity
  return {
    'execution': describe(setting.layout),
    'side_by_side': at_once,
    'devices': devices,
    'steps': setting.capacity // (at_once * devices),
    'capacity': setting.capacity,
    'cohort': draws.expected,
    'steady': always and len(setting.layers.selecting) == 1,
    'pooled': setting.pool is not None,
    'up': up,
    'down': down,
  }


def _states(made: Outline) -> dict[str, Any]:
  """Returns what a plan says of data and states."""
  setting = made.setting
  state = outline.first_state(made)
  return {
    'data': outline.data_bytes(made),
    'examples': 'divided' if setting.apart else 'whole',
    'parameters': tree.nbytes(made.params),
    'client_states': table_bytes(setting, made.params, made.population),
    'divided': setting.split,
    'server_states': {name: tree.nbytes(x) for name, x in state.servers.items()},
    'stack': outline.stack_bytes(made),
  }


class _Setup:
  """The parts of a run as shapes, and the plans that they make under one execution or another."""

  def __init__(
    self, config: Config, params: Any, data: Given, data_dir: str | None, processes: int
  ):
    self.config, self.start = pinned(config, params)
    self.processes = processes
    note = devices.prepare(config.execution.devices)
    devices.start()
    before = programs.compiled().number
    self.parts = build.build(self.config, data_dir, self.start, data, draw=False)
    # As a run does, by operations that are counted here.
    if self.config.noise_seed is not None:
      keys.open_root(self.config.noise_seed)
    wanted = prepare.asked(self.config, {}, note, self.parts.model.rules)
    self._read_source(wanted)
    records.rates(learning_rate(self.config.client, self.config.rounds), 0, self.max_rounds)
    self.operations = programs.compiled().number - before
    self.test = sum(x.nbytes for x in self.parts.data.test.values())
    found = (
      (wanted, 'table')
      if processes > 1 and wanted.mode == 'auto'
      else tuning.known(wanted, self.parts, prepare.work(self.config, self.parts))
    )
    first = dataclasses.replace(wanted, chunk=None, **tuning.CANDIDATES[0])
    self.execution, self.picked = found or (first, TO_MEASURE)

  def _read_source(self, wanted: Execution) -> None:
    """Sets the shapes of the examples on a device, and the rounds of a segment."""
    cap, longest = self.config.execution.stream_above_mb, prepare.longest_segment(self.config)
    data, layers = self.parts.data, self.parts.layers
    mesh = resolve(wanted, layers.draws.capacity, self.parts.like).mesh
    divided = mesh if wanted.divides and mesh.shape[AXIS] > 1 else None

    def shapes() -> Any:
      found = examples.source(data, layers, cap, longest, divided, held=False)
      self.shape, self.max_rounds = found.shape, found.max_rounds
      self.streamed = isinstance(found, examples.Streamed)
      found.close()
      return found.population

    # What is whole is put on no device; shapes of what is divided say where it will be.
    self.population = shapes() if divided else jax.eval_shape(shapes)

  def outline(self, execution: Execution) -> Outline:
    """Returns the simulation of the run on shapes."""
    return outline.outlined(
      self.parts.layers,
      self.parts.like,
      self.population,
      seed=self.config.seed,
      execution=execution,
      max_rounds=self.max_rounds,
      shape=self.shape,
      transforms=(self.parts.data.preprocess,),
      expect_privacy=self.config.privacy != PrivacySection(),
      counts=self.parts.data.counts,
    )

  def programs(self, made: Outline) -> tuple[Program, ...]:
    """Returns what a new run compiles."""
    return programs.of_run(
      self.config,
      self.parts,
      made,
      drawn=self.start is None,
      streamed=self.streamed,
      measured=self.picked == TO_MEASURE,
    )

  def needed(self, made: Outline, peak: Peak) -> int:
    """Returns the bytes taken of a device, or of all those of a process if they share memory."""
    each = peak.total + (outline.data_bytes(made) if self.streamed else 0)
    number = made.setting.layout.mesh.size
    if not room.shared(made):
      return each + -(-self.test // number)
    return -(-(each * number + self.test) // self.processes)

  def smaller(self, there: Room) -> tuple[int, bool]:
    """Returns (the largest chunk that fits, 0 for none; whether one client at a time does)."""

    def fits(**execution: Any) -> bool:
      made = self.outline(dataclasses.replace(self.execution, **{'chunk': None, **execution}))
      needed: int = self.needed(made, outline.peak(made))
      return needed <= there.bytes

    if not fits(mode='loop'):
      return 0, False
    draws = self.parts.layers.draws
    return room.largest(lambda chunk: fits(mode='chunk', chunk=chunk), draws.capacity), True
