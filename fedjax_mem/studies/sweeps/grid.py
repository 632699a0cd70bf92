"""What a sweep runs: the points of a grid of settings, and the seeds of each."""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_mem.config.load import UNHASHED, Config, config_hash, toml_value, with_values
from fedjax_mem.core import validate

Grid = Mapping[str, Sequence[Any]]
# Keys that a sweep sets itself -> what is to be used instead.
_SEEDS = {'seed': '--seeds (seeds=)', 'noise_seed': 'noise_seed in the file, and --seeds (seeds=)'}


class Point(NamedTuple):
  """One run of a sweep.

  Attributes:
    values: swept key -> value at this point of the grid.
    seed: the seed.
    config: the experiment.
  """

  values: dict[str, Any]
  seed: int
  config: Config

  @property
  def label(self) -> str:
    """The point of the grid in words, such as 'client.learning_rate=0.1'."""
    return label(self.values)


def label(values: Mapping[str, Any]) -> str:
  """Returns a point of a grid in words."""
  shown = {k: x if isinstance(x, str) else json.dumps(x) for k, x in values.items()}
  return ', '.join(f'{key}={x}' for key, x in shown.items()) or 'as configured'


def parse(texts: Iterable[str]) -> dict[str, list[Any]]:
  """Returns the grid that 'key=value,value,…' describe; values are TOML or bare strings.

  >>> parse(['client.learning_rate=0.01,0.1', 'weighting.name=equal,examples'])
  {'client.learning_rate': [0.01, 0.1], 'weighting.name': ['equal', 'examples']}

  Raises:
    ValueError: a text without a key or a value, or a key that is there twice.
  """
  grid: dict[str, list[Any]] = {}
  for text in texts:
    key, equals, values = (x.strip() for x in text.partition('='))
    if not equals or not key:
      raise ValueError(f"grid must be 'section.key=value,value,…', got {text!r}.")
    if key in grid:
      raise ValueError(f'grid must name each key once, got {key!r} twice.')
    grid[key] = _values(values)
  return grid


def _values(text: str) -> list[Any]:
  try:  # first as TOML, where a comma may be within an array, a table or a string
    found: list[Any] = tomllib.loads(f'value = [{text}]')['value']
  except tomllib.TOMLDecodeError:
    found = [toml_value(x.strip()) for x in text.split(',') if x.strip()]
  return found


def points(config: Config, grid: Grid, seeds: Sequence[int]) -> list[Point]:
  """Returns the runs of a sweep: every combination of the values, for each seed.

  Args:
    config: the experiment; its `noise_seed`, if it has one, is that of each run's seed.
    grid: key of the configuration, as overrides name it -> the values to try.
    seeds: seeds of the runs.

  Raises:
    ValueError: no key, no seed or one twice, a key without values or with one twice, a key that
      is unknown or changes no results, or a value that is not valid; the message names it.
  """
  if not grid:
    raise ValueError('grid must be of at least one key with its values, got none.')
  if not seeds:
    raise ValueError('seeds must be at least one, got none.')
  for seed in seeds:
    validate.seed(seeds=seed)
    if list(seeds).count(seed) > 1:
      raise ValueError(f'seeds must be different, got {seed!r} twice.')
  if config.tracking.use:
    raise ValueError(
      'tracking.use must be empty in a sweep, whose lanes leave records in folders of their own, '
      f'got {config.tracking.use!r}.'
    )
  for key, values in grid.items():
    _check(key, values)
  made: list[Point] = []
  known: dict[str, str] = {}
  for values in itertools.product(*grid.values()):
    chosen = dict(zip(grid, values, strict=True))
    try:
      there = with_values(config, chosen)
    except ValueError as error:
      raise ValueError(f'grid must be of valid values, got {label(chosen)}: {error}') from error
    same = known.setdefault(config_hash(there), label(chosen))
    if same != label(chosen):
      raise ValueError(f'grid must be of different runs, got {same} and {label(chosen)}.')
    made += [Point(chosen, seed, there.with_seed(seed)) for seed in seeds]
  return made


def _check(key: str, values: Any) -> None:
  if key in _SEEDS:
    raise ValueError(f'grid must leave out {key!r}: use {_SEEDS[key]}.')
  if key.split('.')[0] in UNHASHED:
    raise ValueError(f'grid must be of keys that change results, got {key!r}.')
  if isinstance(values, str) or not isinstance(values, Sequence):
    raise ValueError(f'grid must have a list of values for {key!r}, got {values!r}.')
  if not values:
    raise ValueError(f'grid must have at least one value for {key!r}, got none.')
  texts = [json.dumps(x, sort_keys=True, default=str) for x in values]
  for x, text in zip(values, texts, strict=True):
    if texts.count(text) > 1:
      raise ValueError(f'grid must have different values for {key!r}, got {x!r} twice.')


def name(config: Config, grid: Grid, seeds: Sequence[int]) -> str:
  """Returns the name of the sweep's folder: that of the experiment, and a hash of what is run."""
  said = [config_hash(config.with_seed(0)), {k: list(x) for k, x in grid.items()}, list(seeds)]
  text = json.dumps(said, sort_keys=True, default=str)
  return f'{config.name}-sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
