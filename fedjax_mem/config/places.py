"""The sections of a configuration that say where and how fast a run runs.

They change no results, so they are not in the configuration's hash.
"""

import dataclasses
from typing import Any, ClassVar

from fedjax_mem.config.typed import Section
from fedjax_mem.core import validate
from fedjax_mem.engine.execution import DATA, MODES
from fedjax_mem.engine.shards import checked

_DEVICES = 1024  # more host devices than that only take memory
_YEAR = 366 * 86_400  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSection(Section):
  """Settings of speed and memory.

  Attributes:
    mode: how clients are vectorised: 'auto' (from a table, else measured), 'vmap' (all clients of a
      device side by side), 'chunk' (some of them at a time) or 'loop' (one after another).
    chunk: clients at a time; required by the mode 'chunk', refused by the others.
    devices: number of devices, or 'auto' for all of them.
    segment_seconds: longest time of a compiled segment of rounds that is aimed at, in seconds.
    max_segment_rounds: largest number of rounds in a segment; None = no limit.
    checkpoint_every_seconds: seconds between checkpoints; 0 = after every segment.
    keep_checkpoints: number of newest checkpoints that are kept, >= 2 since one may be damaged.
    stream_above_mb: size of the examples in megabytes (10^6 bytes) above which they are streamed to
      the device, segment by segment; None = never.
    data: where the examples are: 'whole' on every device, 'divided' (each device has those of its
      own clients, which run there if there is room), or 'auto' (divided over several processes).
    slack: places of a device beyond its share of the cohort, so that fewer clients run away from
      their examples and states.
    model_devices: devices that share the parameters of a model, a divisor of `devices`, which
      counts all.
    rules: how they share them: [regular expression, dimension] for paths of parameters, of which
      the first that is found in a path counts; none: those of the model. Used if model_devices > 1.
  """

  section: ClassVar[str] = 'execution'
  mode: str = 'auto'
  chunk: int | None = None
  devices: int | str = 'auto'
  segment_seconds: float = 5.0
  max_segment_rounds: int | None = None
  checkpoint_every_seconds: float = 30.0
  keep_checkpoints: int = 3
  stream_above_mb: float | None = None
  data: str = 'auto'
  slack: int = 0
  model_devices: int = 1
  rules: list[Any] = dataclasses.field(default_factory=list)

  def _check(self) -> None:
    validate.one_of(MODES, **{'execution.mode': self.mode})
    validate.one_of(DATA, **{'execution.data': self.data})
    self._each(validate.integer, 'slack', at_least=0, at_most=_DEVICES)
    self._counts('chunk', 'max_segment_rounds', 'keep_checkpoints')
    if (self.chunk is None) == (self.mode == 'chunk'):
      raise ValueError(
        f"execution.chunk must be given with mode 'chunk' and only then, got {self.chunk!r} with "
        f'{self.mode!r}.'
      )
    self._each(validate.integer, 'keep_checkpoints', at_least=2)
    self._each(validate.positive, 'segment_seconds', 'stream_above_mb')
    self._each(validate.non_negative, 'checkpoint_every_seconds')
    if isinstance(self.devices, str) and self.devices != 'auto':
      raise ValueError(f"execution.devices must be 'auto' or an integer, got {self.devices!r}.")
    if isinstance(self.devices, int):
      self._each(validate.integer, 'devices', at_most=_DEVICES)
    self._each(validate.integer, 'model_devices', at_most=_DEVICES)
    if isinstance(self.devices, int) and self.devices % self.model_devices:
      raise ValueError(
        f'execution.model_devices must be a divisor of execution.devices, {self.devices}, got '
        f'{self.model_devices}.'
      )
    checked(self.rules, 'execution.rules')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingSection(Section):
  """Where the records of a run go besides its folder, whose `metrics.jsonl` always has them.

  Attributes:
    use: trackers: 'csv', 'tensorboard', 'wandb', 'mlflow' or 'package.module:factory'.
    options: name of a tracker -> keyword arguments of its factory.
    uncovered: whether they also get metrics that a claim of privacy does not cover.
  """

  section: ClassVar[str] = 'tracking'
  use: list[Any] = dataclasses.field(default_factory=list)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  uncovered: bool = False

  def _check(self) -> None:
    for i, name in enumerate(self.use):
      if not isinstance(name, str) or not name.strip():
        raise ValueError(f'tracking.use[{i}] must be the name of a tracker, got {name!r}.')
    for name, options in self.options.items():
      if name not in self.use:
        raise ValueError(
          f'tracking.options must be of trackers in tracking.use = {self.use!r}, got {name!r}.'
          f'{validate.nearest(name, self.use)}'
        )
      if not isinstance(options, dict):
        raise ValueError(f'tracking.options.{name} must be a table, got {options!r}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeploySection(Section):
  """Rounds on real machines (`fedjax-mem deploy`): how long to wait, and for how many.

  A simulation ignores it: what a round computes depends on who arrived, not on when.

  Attributes:
    round_timeout: longest time of a round in seconds, > 0; clients whose update has not arrived by
      then have dropped out of it.
    min_clients: the fewest clients whose updates make a round, at most the cohort's size; with
      fewer it is tried again, unless no more were drawn. None: 1, or what the layers of the round
      need.
  """

  section: ClassVar[str] = 'deploy'
  round_timeout: float = 60.0
  min_clients: int | None = None

  def _check(self) -> None:
    self._each(validate.positive, 'round_timeout')
    if self.round_timeout > _YEAR:
      raise ValueError(
        f'deploy.round_timeout must be at most {_YEAR}, a year, got {self.round_timeout!r}.'
      )
    self._counts('min_clients')
