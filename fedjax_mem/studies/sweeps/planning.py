"""The plan of a sweep: every run is built and checked, as alone, before the first one begins."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.config.build import assemble, load_data
from fedjax_mem.config.load import Config, to_dict
from fedjax_mem.config.parts import Parts
from fedjax_mem.config.sections import PrivacySection
from fedjax_mem.config.start import pinned
from fedjax_mem.core import IncompatibleStages, Population
from fedjax_mem.data.source import FederatedData
from fedjax_mem.engine import Execution, evaluator, lanes, lifting, make_mesh, personal, simulate
from fedjax_mem.runner import client_scores, examples, records, scores
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner.prepare import MAX_SEGMENT, Ready
from fedjax_mem.studies.sweeps.grid import Point

_INT32_MAX = np.iinfo(np.int32).max
ScoreFn = Callable[[Any], dict[str, float]]
_Scores = tuple[ScoreFn, ScoreFn | None]


class Planned(NamedTuple):
  """One run of a sweep, built and checked.

  Attributes:
    point: what it is.
    ready: its parts, on one device.
    lane: its traced program; None: it cannot run beside others.
    validate: parameters -> scores on the server's validation split, or None without one.
    reason: why it runs by itself, if it has to.
  """

  point: Point
  ready: Ready
  lane: lanes.Lane | None
  validate: ScoreFn | None
  reason: str = ''


def plan(points: Sequence[Point], data_dir: str | None = None) -> list[Planned]:
  """Returns the runs, built and checked; nothing has run.

  Raises:
    ValueError: a point whose parts do not fit; the message names the point.
  """
  data = {_data_key(x.config): x.config for x in points}
  loaded = {key: load_data(config, data_dir) for key, config in data.items()}
  found = populations(loaded)
  scorers = _Scorers()
  made = []
  for point in points:
    key = _data_key(point.config)
    try:
      made.append(_planned(point, loaded[key], found[key], scorers))
    except IncompatibleStages as error:
      raise IncompatibleStages(f'{point.label}, seed {point.seed}: {error}') from error
    except ValueError as error:
      raise ValueError(f'{point.label}, seed {point.seed}: {error}') from error
  return made


def _data_key(config: Config) -> str:
  section = config.data
  seed = config.seed if section.partition_seed is None else section.partition_seed
  return repr((to_dict(section), seed))


def populations(loaded: dict[str, FederatedData]) -> dict[str, Population]:
  """Returns the populations on the device: examples that several have in common are there once.

  Partitions of other seeds have other lists of the same examples; with a validation split they
  have other examples, too. Those are put one after another, and the lists count from where their
  own begin. So all clients of all lanes read one array, and each its own rows.
  """
  stores: dict[str, list[tuple[dict[str, np.ndarray], int]]] = {}
  place: dict[str, tuple[str, int]] = {}
  for key, data in loaded.items():
    kind = repr(sorted((name, x.dtype.str, x.shape[1:]) for name, x in data.arrays.items()))
    store = stores.setdefault(kind, [])
    begin = next((begin for arrays, begin in store if _equal(arrays, data.arrays)), None)
    if begin is None:
      begin = sum(len(arrays['y']) for arrays, _ in store)
      if begin + len(data.arrays['y']) > _INT32_MAX:
        kind, begin = f'{kind} {key}', 0
        store = stores.setdefault(kind, [])
      store.append((data.arrays, begin))
    place[key] = kind, begin
  where = jax.NamedSharding(make_mesh(1), jax.P())
  arrays = {kind: jax.device_put(_joined(store), where) for kind, store in stores.items()}
  made = {}
  for key, data in loaded.items():
    kind, begin = place[key]
    lists = data.index + np.int32(begin), data.offsets[:-1], data.counts
    moved = jax.device_put(tuple(jnp.asarray(x, jnp.int32) for x in lists), where)
    made[key] = Population(arrays[kind], *moved)
  return made


def _equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  return all(x is b[name] or np.array_equal(x, b[name]) for name, x in a.items())


def _joined(store: list[tuple[dict[str, np.ndarray], int]]) -> dict[str, np.ndarray]:
  if len(store) == 1:
    return store[0][0]
  return {name: np.concatenate([arrays[name] for arrays, _ in store]) for name in store[0][0]}


def _planned(
  point: Point, data: FederatedData, population: Population, scorers: '_Scorers'
) -> Planned:
  config, start = pinned(point.config)
  wanted = config.execution
  if wanted.model_devices > 1:
    raise ValueError(
      'execution.model_devices must be 1 in a sweep, whose runs are planned on one device, got '
      f'{wanted.model_devices}.'
    )
  parts = assemble(config, data, start)
  longest = min(wanted.max_segment_rounds or MAX_SEGMENT, config.evaluation.every, config.rounds)
  source = examples.source(data, parts.layers, wanted.stream_above_mb, longest)
  streamed = isinstance(source, examples.Streamed)
  sim = simulate(
    parts.layers,
    parts.like,
    source.population if streamed else population,
    seed=config.seed,
    execution=Execution(mode=wanted.mode, chunk=wanted.chunk, devices=1),
    max_rounds=source.max_rounds,
    shape=source.shape,
    transforms=(data.preprocess,),
    expect_privacy=config.privacy != PrivacySection(),
    noise_seed=config.noise_seed,
  )
  sim = sim.with_root(sim.root)  # pinned: the root in the lane's folder is that of its rounds
  source.close()
  ledgers = spending.open_ledgers(config, parts.layers, data.counts, sim.setting.specs)
  added = client_scores.names(parts)
  records.check_names(sim.setting.metrics, scores.names(parts), ledgers, added)
  evaluate, check = scorers.of(parts, config.evaluation.batch_size)
  of_clients = client_scores.Scorer(parts, config.evaluation.batch_size, sim.setting.layout.mesh)
  ready = Ready(config, start, parts, sim, source, evaluate, of_clients, ledgers, 'asked', [])
  if streamed:
    return Planned(point, ready, None, check, 'its examples are streamed')
  if personal.fact(parts.layers) is not None:
    return Planned(point, ready, None, check, 'its clients keep a part of the model')
  return Planned(point, ready, lanes.lane(sim, parts.params), check)


class _Scorers:
  """Compiled scores, shared by all runs that compute the same ones on the same examples."""

  def __init__(self) -> None:
    self._known: list[tuple[Any, lifting.Program, FederatedData, _Scores]] = []

  def of(self, parts: Parts, batch_size: int) -> tuple[ScoreFn, ScoreFn | None]:
    """Returns parameters -> scores on the test set, and on the validation split or None."""
    one = {k: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for k, x in parts.data.test.items()}
    traced, like = jax.make_jaxpr(scores.measured(parts), return_shape=True)(parts.like, one)
    program = lifting.read(traced)
    key = (batch_size, jax.tree.structure(like), parts.model.task)
    for other, known, data, found in self._known:
      same = other == key and known.structure == program.structure
      if same and not lifting.differing([known, program]) and _same_sets(data, parts.data):
        return found
    mesh = make_mesh(1)
    made: _Scores = (scores.scorer(parts, batch_size, mesh), None)
    if parts.data.validation is not None:
      own, further = scores.of_model(parts), scores.finish(parts)
      held = parts.data.validation
      check = evaluator(own, held, batch_size=batch_size, mesh=mesh, finish=further)
      made = made[0], check
    self._known.append((key, program, parts.data, made))
    return made


def _same_sets(a: FederatedData, b: FederatedData) -> bool:
  if a is b:
    return True
  held, other = a.validation or {}, b.validation or {}
  return _equal(a.test, b.test) and set(held) == set(other) and _equal(held, other)


def groups(planned: list[Planned], at_once: int | None = None) -> list[list[int]]:
  """Returns the runs, by their numbers, in groups: each of several is one program.

  Runs whose program cannot be traced together run by themselves, and get the reason.
  """
  able = [i for i, x in enumerate(planned) if x.lane is not None]
  kinds: dict[int, list[int]] = {}
  for i in able:
    kinds.setdefault(planned[i].point.config.evaluation.every, []).append(i)
  made = [[i] for i, x in enumerate(planned) if x.lane is None]
  for kind in kinds.values():
    found = [x.lane for x in (planned[i] for i in kind) if x.lane is not None]
    for group in lanes.alike(found):
      reason = _unfit([found[j] for j in group], at_once) if len(group) > 1 else ''
      numbers = [kind[j] for j in group]
      if not reason:
        made.append(numbers)
        continue
      for i in numbers:
        planned[i] = planned[i]._replace(lane=None, reason=reason)
        made.append([i])
  return sorted(made)


def _unfit(group: Sequence[lanes.Lane], at_once: int | None) -> str:
  """Returns why lanes of one structure cannot be one program; '' if they can."""
  try:
    lanes.together(group, group[0].sim.max_rounds, at_once).check()
  except Exception as error:  # a user's own operation may raise anything without lanes in mind
    words = ' '.join(str(error).split())[:120]
    return f'it cannot be traced beside others ({type(error).__name__}: {words})'
  return ''
