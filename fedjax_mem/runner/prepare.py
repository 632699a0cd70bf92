"""Builds and checks all parts of a run before its folder is made, so bad input leaves no trace."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.config.build import GIVEN, build
from fedjax_mem.config.load import Config, config_hash
from fedjax_mem.config.parts import Parts
from fedjax_mem.config.sections import PrivacySection
from fedjax_mem.config.start import pinned
from fedjax_mem.data.source import FederatedData
from fedjax_mem.data.table import Table
from fedjax_mem.engine import Execution, Simulation, describe, personal, simulate, table_bytes
from fedjax_mem.engine.execution import resolve
from fedjax_mem.engine.mesh import AXIS, of_model
from fedjax_mem.models import saved
from fedjax_mem.runner import (
  client_scores,
  devices,
  examples,
  flags,
  records,
  scores,
  traffic,
  tuning,
)
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner.cluster import Cluster

MAX_SEGMENT = 256  # rounds; longer segments would save nothing, and their metrics take memory


class Ready(NamedTuple):
  """All parts of a run, built and checked.

  Attributes:
    config: the experiment.
    start: the arrays that it starts from; None: they are drawn.
    parts: its data, model and layers.
    sim: the compiled rounds.
    source: source of the examples.
    evaluate: parameters -> scores on the test set.
    evaluate_clients: parameters -> scores on what the clients hold out; {} if they hold out none.
    ledgers: ledgers of its noise, or None.
    picked: how the execution was chosen; see `tuning.choose`.
    notes: notes to the user about the devices.
  """

  config: Config
  start: saved.Arrays | None
  parts: Parts
  sim: Simulation
  source: examples.Source
  evaluate: Callable[[Any], dict[str, float]]
  evaluate_clients: client_scores.Scorer
  ledgers: spending.Ledgers | None
  picked: str
  notes: list[str]


# Data that a caller gives, before or after their partition; None: the configuration names them.
Given = Table | FederatedData | None


def get_ready(
  config: Config,
  data_dir: str | None,
  recorded: dict[str, Any],
  start: saved.Arrays | None = None,
  data: Given = None,
  digest: str | None = None,
) -> Ready:
  """Returns all parts of a run.

  Args:
    config: the experiment.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    recorded: the execution that the interrupted run has recorded; empty for a new run.
    start: the arrays that it starts from; None: as the configuration says.
    data: data that the caller gives.
    digest: of the data that the interrupted run was given; None: a new run.

  Raises:
    ValueError: bad input, or other data than the interrupted run had.
  """
  if start is None:
    config, start = pinned(config)
  wanted = config.execution
  note = devices.prepare(recorded.get('devices', wanted.devices))
  devices.start()
  parts = build(config, data_dir, start, data)
  _check_given(parts.data, digest)
  chosen = asked(config, recorded, note, parts.model.rules)
  longest = recorded.get('max_rounds') or longest_segment(config)
  mesh, source = _source(parts, chosen, wanted.stream_above_mb, longest)

  def make(execution: Execution) -> Simulation:
    return simulate(
      parts.layers,
      parts.like,
      source.population,
      seed=config.seed,
      execution=execution,
      max_rounds=source.max_rounds,
      shape=source.shape,
      transforms=(parts.data.preprocess,),
      expect_privacy=config.privacy != PrivacySection(),
      noise_seed=config.noise_seed,
    )

  chosen, picked = tuning.choose(chosen, make, parts, work(config, parts))
  sim = make(chosen)
  sim = sim.with_root(sim.root)  # pinned: the root in the run's folder is that of its rounds
  ledgers = spending.open_ledgers(config, parts.layers, parts.data.counts, sim.setting.specs)
  batch = config.evaluation.batch_size
  evaluate = scores.scorer(parts, batch, mesh)
  of_clients = client_scores.Scorer(parts, batch, mesh)
  added = client_scores.names(parts)
  records.check_names(sim.setting.metrics, scores.names(parts), ledgers, added)
  notes = [note] if note else []
  return Ready(config, start, parts, sim, source, evaluate, of_clients, ledgers, picked, notes)


def _source(
  parts: Parts, execution: Execution, cap_mb: float | None, longest: int
) -> tuple[Mesh, examples.Source]:
  """Returns the devices, and the source of the examples that are on them."""
  mesh = resolve(execution, parts.layers.draws.capacity, parts.like).mesh
  divided = mesh if execution.divides and mesh.shape[AXIS] > 1 else None
  return mesh, examples.source(parts.data, parts.layers, cap_mb, longest, divided)


def _check_given(data: FederatedData, digest: str | None) -> None:
  """Raises `ValueError` unless the data have the digest that the interrupted run recorded."""
  if digest is not None and digest != data.digest():
    raise ValueError('data must be those that the run was given when it began, got others.')


def longest_segment(config: Config) -> int:
  """Returns the most rounds in a segment of a new run, where all examples are on the devices."""
  most = config.execution.max_segment_rounds or MAX_SEGMENT
  return min(most, config.evaluation.every, config.rounds)


def asked(
  config: Config, recorded: dict[str, Any], note: str | None, rules: tuple[Any, ...]
) -> Execution:
  """Returns the execution that is asked for, or that the interrupted run has recorded.

  Args:
    config: the experiment.
    recorded: as in `get_ready`.
    note: whether the number of devices is another one than asked for.
    rules: those of the model, where the configuration has none.
  """
  wanted = config.execution
  chosen = Execution(
    mode=recorded.get('mode', wanted.mode),
    chunk=recorded.get('chunk', wanted.chunk),
    devices=recorded.get('devices', wanted.devices),
    data=recorded.get('data', wanted.data),
    slack=recorded.get('slack', wanted.slack),
    model_devices=recorded.get('model_devices', wanted.model_devices),
    rules=recorded.get('rules', wanted.rules) or rules,
  )
  there = len(jax.devices())
  # A run from a machine with more devices must resume here. A new run that asks for more devices
  # than could be set is an error, which `simulate` raises.
  if (recorded or note) and chosen.devices != 'auto' and int(chosen.devices) > there:
    model = math.gcd(chosen.model_devices, there)
    chosen = dataclasses.replace(chosen, devices='auto', model_devices=model)
  return chosen


def together(cluster: Cluster, make: Callable[[], Ready]) -> Ready:
  """Returns the parts of a run, which are the same on all processes of a cluster.

  Raises:
    ValueError: some process refuses, or has another configuration or other data.
  """

  def same(ready: Ready) -> dict[str, Any]:
    layout = ready.sim.setting.layout
    return {
      'configuration': config_hash(ready.config),
      'data (SHA-256)': ready.parts.data.digest(),
      'execution': [
        *(layout.looped, layout.chunk, layout.slack, layout.devices, ready.sim.max_rounds),
        'divided' if ready.sim.setting.apart else 'whole',
        isinstance(ready.source, examples.Streamed),
        ready.config.execution.keep_checkpoints,
      ],
      'flags of JAX': flags.stated(),
      'parameters': [of_model(layout.mesh), str(layout.rules)],
    }

  return cluster.together(make, same)


def keeps_root(ready: Ready) -> bool:
  """Returns whether the run has a secret root, which is kept beside its checkpoints."""
  return ready.sim.claims and ready.config.noise_seed is None


def work(config: Config, parts: Parts) -> str:
  """Returns a text of all but the devices that the fastest execution depends on."""
  client = config.client
  return (
    f'{config.model.name} of {sum(x.size for x in jax.tree.leaves(parts.like))} parameters, '
    f'cohort {config.selection.cohort_size}, {client.epochs} x {client.batch_size}'
  )


def _estimator(ready: Ready) -> list[str]:
  """Returns a note if the average under importance sampling is biased, with the remedy."""
  weighs = ready.parts.layers.weighs
  if ready.config.selection.name != 'importance' or weighs.divisor is not None:
    return []
  value = 'the weight of all clients'
  if weighs.of is not None:
    value = f'{float(weighs.of(np.asarray(ready.parts.data.counts, np.float32)).sum()):.10g}'
  return [
    'updates are divided by the sum of the weights that arrived, each over its chance (a '
    f'self-normalised mean, biased); weighting.options.divisor = {value} makes it unbiased'
  ]


def _of_data(data: FederatedData, given: bool) -> dict[str, Any]:
  """Returns the task, what its labels are called (class k is the k-th), and how many rows equal.

  The rows are those of the training examples that equal an earlier one; None: too many to look.
  """
  named = {} if data.labels is None else {'labels': list(data.labels)}
  known = {'data_sha256': data.digest()} if given else {}
  return {'task': data.task.name, **named, 'equal_rows': data.equal_rows(), **known}


def facts(ready: Ready) -> dict[str, Any]:
  """Returns the facts for the manifest before the first round."""
  parts, sim, layout = ready.parts, ready.sim, ready.sim.setting.layout
  notes = [*ready.notes, *([personal.NOTE] if personal.fact(parts.layers) else [])]
  held = _estimator(ready)  # these tell what clients hold
  if parts.data.unused_labels:
    held.insert(0, f'no client holds examples of the labels {list(parts.data.unused_labels)}')
  if parts.data.held is not None:
    without = int((np.diff(parts.data.held.offsets) == 0).sum())
    if without:
      held.append(f'{without} clients have too few examples to hold one out: scores leave them out')
  notes += [f'{x} ({NOT_COVERED})' for x in held] if sim.claims else held
  notes += traffic.notes(sim, ready.config.rounds)
  return {
    'devices': [str(d.device_kind) for d in layout.mesh.devices.flat],
    'backend': jax.default_backend(),
    'flags': flags.stated(),
    'execution': {
      'mode': 'loop' if layout.looped else 'chunk',
      'chunk': None if layout.looped else layout.chunk,
      'devices': layout.mesh.size,
      'model_devices': of_model(layout.mesh),
      'rules': [list(x) for x in layout.rules],
      'data': 'divided' if sim.setting.apart else 'whole',
      'slack': layout.slack,
      'max_rounds': sim.max_rounds,
      'words': describe(layout),
      'picked': ready.picked,
    },
    **spending.facts(ready.ledgers),
    **(records.coverage({}) if sim.claims else {}),
    'model': {'input_shape': list(parts.data.input_shape), 'outputs': parts.data.num_classes},
    'parameters': sum(x.size for x in jax.tree.leaves(parts.like)),
    'clients': parts.data.num_clients,
    'examples': int(parts.data.counts.sum()),
    **_of_data(parts.data, given=ready.config.data.name == GIVEN),
    'client_state_bytes': table_bytes(sim.setting, sim.params, sim.population),
    'resumed': [],
    'warnings': notes,
  }
