"""How rounds are executed: options that change speed, and of a result only the order of sums."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_mem.core import platforms, validate
from fedjax_mem.engine import shards
from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.mesh import AXIS, make_mesh, of_model

MODES = ('auto', 'vmap', 'chunk', 'loop')
DATA = ('auto', 'whole', 'divided')

# (platform, most parameters, clients side by side on a device; 0: one at a time); the first match
# counts. The CPU rows were measured by `python -m benchmarks.scaling --what chunk`. Other platforms
# run the whole cohort side by side: a default, which was not measured.
_TABLE = (
  ('cpu', 20_000, 25),
  ('cpu', float('inf'), 0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How to run the cohort of a round.

  Attributes:
    mode: 'vmap' (the whole cohort side by side), 'chunk' (`chunk` clients side by side), 'loop'
      (one client at a time) or 'auto' (a table by platform and model size decides).
    chunk: clients side by side on each device, for mode 'chunk'.
    devices: devices over which the cohort is split, or 'auto' for all there are.
    pool: whether a round in which each client takes one local step may be computed as one gradient
      (`engine/pooled.py`), where no layer needs the update of a single client; `mode` is then not
      used.
    data: where the examples are: 'whole' on each device; 'divided', each device has those of its
      own clients, which run there as far as there is room (`engine/apart.py`); 'auto': divided
      where there are several processes.
    slack: places of a device beyond its share of the cohort: with more of them fewer clients run
      away from their examples and states, and devices wait longer for each other.
    model_devices: devices that share the parameters, a divisor of `devices`, which counts all:
      clients are divided over the groups of so many.
    rules: how they share them, pairs (regular expression, dimension) for the paths of parameters
      (`engine/shards.py`), such as `Model.rules`; needed with `model_devices` > 1, else not used.
  """

  mode: str = 'auto'
  chunk: int | None = None
  devices: int | str = 'auto'
  pool: bool = True
  data: str = 'auto'
  slack: int = 0
  model_devices: int = 1
  rules: Sequence[Any] = ()

  def __post_init__(self) -> None:
    validate.one_of(MODES, mode=self.mode)
    if (self.chunk is not None) != (self.mode == 'chunk'):
      raise ValueError(
        f'chunk must be given with mode "chunk" and only then, '
        f'got {self.chunk!r} with {self.mode!r}.'
      )
    if self.chunk is not None:
      validate.integer(chunk=self.chunk)
    if self.devices != 'auto':
      validate.integer(devices=self.devices)
    validate.one_of(DATA, data=self.data)
    validate.integer(at_least=0, slack=self.slack)
    validate.integer(model_devices=self.model_devices)
    object.__setattr__(self, 'rules', shards.checked(self.rules))

  @property
  def divides(self) -> bool:
    """Whether the examples are divided over the devices."""
    return self.data == 'divided' or (self.data == 'auto' and jax.process_count() > 1)


def resolve(execution: Execution, capacity: int, params: Any) -> Layout:
  """Returns the layout for a cohort of `capacity` clients and a model.

  Args:
    execution: the options.
    capacity: rows of the cohort, before padding.
    params: the model's parameters (arrays or shapes).

  Raises:
    ValueError: more devices than there are, devices that groups of `model_devices` do not divide,
      or rules that do not fit the parameters.
  """
  devices, model = execution.devices, execution.model_devices
  validate.integer(at_most=len(jax.devices()), model_devices=model)
  if devices == 'auto' and jax.process_count() == 1:
    devices = max(1, min(len(jax.devices()) // model, capacity)) * model
  mesh = make_mesh(devices, model)
  layout = _laid_out(execution, capacity, params, mesh)
  if model == 1:
    return layout
  rules = tuple(execution.rules)
  return layout._replace(rules=rules, specs=shards.of_parameters(rules, params, model))


def _laid_out(execution: Execution, capacity: int, params: Any, mesh: Mesh) -> Layout:
  """Returns the layout on a mesh, without how parameters are divided."""
  groups = mesh.shape[AXIS]
  slack = execution.slack if groups > 1 else 0
  each = -(-capacity // groups) + slack
  mode, chunk = execution.mode, execution.chunk
  if mode == 'auto':
    mode, chunk = _from_table(platforms.current(), params)
  if mode == 'loop':
    return Layout(1, True, mesh, slack)
  chunk = each if mode == 'vmap' or chunk is None else min(chunk, each)
  return Layout(chunk, False, mesh, slack)


def in_table(platform: str, params: Any) -> bool:
  """Returns whether mode 'auto' is by measurement for a model of this size on a platform."""
  size = sum(x.size for x in jax.tree.leaves(params))
  return any(platform == name and size <= at_most for name, at_most, _ in _TABLE)


def _from_table(platform: str, params: Any) -> tuple[str, int | None]:
  size = sum(x.size for x in jax.tree.leaves(params))
  for name, at_most, chunk in _TABLE:
    if platform == name and size <= at_most:
      return ('chunk', chunk) if chunk else ('loop', None)
  return 'vmap', None


def describe(layout: Layout) -> str:
  """Returns the layout in words, for the manifest and the log."""
  how = 'one client at a time' if layout.looped else f'{layout.chunk} clients side by side'
  kind = layout.mesh.devices.flat[0].device_kind
  model = of_model(layout.mesh)
  if model > 1:
    return f'{how} on each of {layout.devices} group(s) of {model} devices ({kind})'
  return f'{how} on each of {layout.devices} device(s) ({kind})'
