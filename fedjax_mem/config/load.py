"""`Config`, the description of an experiment: read strictly from TOML, written back, and hashed.

A file has `version = 1`, `name`, `seed`, `noise_seed`, `rounds` and the sections of `sections.py`
and `places.py`. Every setting that changes results is in the hash that names the run; `name` and
the sections of `places.py` are not.
"""

import copy
import dataclasses
import difflib
import hashlib
import json
import pathlib
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from fedjax_mem.config.places import DeploySection, ExecutionSection
from fedjax_mem.config.sections import (
  AlgorithmSection,
  ClientSection,
  DataSection,
  EvaluationSection,
  ModelSection,
  PrivacySection,
  SelectionSection,
  ServerSection,
  StageSection,
  WeightingSection,
)
from fedjax_mem.config.typed import Section
from fedjax_mem.core import validate

VERSION = 1
UNHASHED = ('name', 'execution', 'deploy')  # what changes no results
_DEFAULT = object()  # in place of a value: back to the default
_SHIPPED = pathlib.Path(__file__).parents[1] / 'configs'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,99}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
  """One experiment.

  Attributes:
    version: version of this format, 1.
    name: first part of the name of the run's folder: letters, digits, '.', '_' and '-'.
    seed: seed of every random draw but those of `noise_seed`, in [0, 2**32).
    noise_seed: under a claim of privacy, the seed of the noise and of draws that amplify it, in
      [0, 2**32): it makes runs repeatable, and their statements say so. None: each run has a secret
      root of its own. Without a claim it changes nothing.
    rounds: number of rounds of the whole run.
    data: the data set and its partition.
    model: the model.
    algorithm: the algorithm.
    client: local training.
    server: the server optimizer.
    selection: the sampler.
    weighting: the weights of the updates.
    privacy: the privacy claim.
    evaluation: evaluation on the test set.
    stages: further layers, in the order in which clients run them.
    execution: speed and memory.
    deploy: rounds on real machines.
  """

  version: int = VERSION
  name: str = 'run'
  seed: int = 0
  noise_seed: int | None = None
  rounds: int
  data: DataSection
  model: ModelSection
  algorithm: AlgorithmSection = dataclasses.field(default_factory=AlgorithmSection)
  client: ClientSection = dataclasses.field(default_factory=ClientSection)
  server: ServerSection = dataclasses.field(default_factory=ServerSection)
  selection: SelectionSection
  weighting: WeightingSection = dataclasses.field(default_factory=WeightingSection)
  privacy: PrivacySection = dataclasses.field(default_factory=PrivacySection)
  evaluation: EvaluationSection = dataclasses.field(default_factory=EvaluationSection)
  stages: tuple[StageSection, ...] = ()
  execution: ExecutionSection = dataclasses.field(default_factory=ExecutionSection)
  deploy: DeploySection = dataclasses.field(default_factory=DeploySection)

  def with_seed(self, seed: int) -> 'Config':
    """Returns the experiment with another seed, and with it as `noise_seed` if there is one."""
    noise = None if self.noise_seed is None else seed
    return dataclasses.replace(self, seed=seed, noise_seed=noise)

  def _check(self) -> None:
    if self.version != VERSION:
      raise ValueError(
        f'version must be {VERSION}, the one that this package reads, got {self.version!r}.'
      )
    if not _NAME.fullmatch(self.name):
      raise ValueError(
        "name must be 1 to 100 letters, digits, '.', '_' or '-' and start with a letter or digit, "
        f'got {self.name!r}.'
      )
    validate.seed(seed=self.seed)
    if self.noise_seed is not None:
      validate.seed(noise_seed=self.noise_seed)
    self._counts('rounds')
    if not all(isinstance(stage, StageSection) for stage in self.stages):
      raise ValueError(f'stages must be a tuple of StageSection, got {self.stages!r}.')
    population = self.data.num_clients
    if population is not None and self.selection.cohort_size > population:
      raise ValueError(
        f'selection.cohort_size must be at most data.num_clients = {population}, '
        f'got {self.selection.cohort_size!r}.'
      )
    least = self.deploy.min_clients
    if least is not None and least > self.selection.cohort_size:
      raise ValueError(
        f'deploy.min_clients must be at most selection.cohort_size = {self.selection.cohort_size}, '
        f'got {least!r}.'
      )


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
  """Returns the experiment in a TOML file, or one that the package ships, with overrides.

  >>> config = load_config('quickstart', ['rounds=20', 'data.alpha=0.1'])
  >>> config.rounds, config.data.alpha, config.client.batch_size
  (20, 0.1, 10)

  Args:
    path: of the file, whose stem is the default of `name`; or a name among those of `shipped`.
    overrides: 'section.key=value' each, the value in TOML or a bare string; 'section.key=' goes
      back to the default; an element of an array goes by its number ('stages.0.use=top_k').

  Raises:
    FileNotFoundError: there is no such file, and no experiment of this name.
    ValueError: it cannot be read, or holds an unknown key, a wrong type or a bad value.
  """
  path = _found(pathlib.Path(path))
  raw = _read(path)
  for text in overrides:
    _override(raw, text)
  raw.setdefault('name', path.stem)
  if 'version' not in raw:
    raise ValueError(f'version must be {VERSION}, got none: add `version = {VERSION}` to {path}.')
  return config_from_dict(raw)


def shipped() -> tuple[str, ...]:
  """Returns the names of the experiments that the package ships, which `load_config` takes.

  >>> 'quickstart' in shipped(), 'published/pfl_cifar10' in shipped()
  (True, True)
  """
  files = _SHIPPED.glob('**/*.toml')
  return tuple(sorted(x.relative_to(_SHIPPED).with_suffix('').as_posix() for x in files))


def _found(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the file that is meant: itself, or that of a shipped experiment."""
  return path if path.is_file() or path.as_posix() not in shipped() else _SHIPPED / f'{path}.toml'


def config_from_dict(raw: dict[str, Any]) -> Config:
  """Returns the experiment that a parsed TOML table describes.

  Raises:
    ValueError: an unknown or missing key, a wrong type or a bad value.
  """
  # Another version may have other keys: report the version before any unknown key.
  if 'version' in raw and raw['version'] != VERSION:
    raise ValueError(
      f'version must be {VERSION}, the one that this package reads, got {raw["version"]!r}.'
    )
  hints = typing.get_type_hints(Config)
  values: dict[str, Any] = dict(raw)
  _check_keys(Config, raw, '')
  for key, value in raw.items():
    if key == 'stages':
      values[key] = _stages(value)
    elif dataclasses.is_dataclass(hints[key]):
      values[key] = _section(hints[key], value, key)
      if key == 'privacy' and value == {}:
        # The user wants a claim, but a section of defaults would silently make none.
        raise ValueError("privacy must set 'delta', or be left out, got an empty table.")
  return Config(**values)


def to_dict(config: Any) -> dict[str, Any]:
  """Returns a config, or one section, as plain tables; keys that are None are left out."""
  items: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      value = to_dict(value)
    elif field.name == 'stages':
      value = [to_dict(stage) for stage in value]
    if value is not None and value != {}:
      items[field.name] = value
  return items


def _given(config: Any) -> dict[str, Any]:
  """Returns a config, or one section, as plain tables without the keys at their defaults."""
  items: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name == 'stages':
      value = [_given(stage) for stage in value]
      given = value != []
    elif dataclasses.is_dataclass(value):
      value = _given(value)
      given = value != {}
    else:
      made = field.default_factory
      default = field.default if made is dataclasses.MISSING else made()
      given = value != default
    if given:
      items[field.name] = value
  return items


def to_toml(config: Config) -> str:
  """Returns the config as TOML that `load_config` reads back to an equal config."""
  return tomli_w.dumps(to_dict(config))


def config_hash(config: Config) -> str:
  """Returns 8 hexadecimal digits of a hash of all settings but those of `UNHASHED`.

  Keys at their defaults are left out, so that a new key does not change the hash of old configs.
  The hash of the parameters to start from counts, not where they are.

  Raises:
    ValueError: `model.init` cannot be read, or is not what `model.init_hash` says.
  """
  if config.model.init is not None and config.model.init_hash is None:
    from fedjax_mem.config.start import pinned  # which imports this module

    config = pinned(config)[0]
  items = _given(config)
  for key in UNHASHED:
    items.pop(key, None)
  items['model'].pop('init', None)
  text = json.dumps(items, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    text = path.read_bytes().decode('utf-8-sig')  # some editors begin a file with a mark
  except FileNotFoundError:
    beside = [x.name for x in path.parent.glob('*.toml')] if path.suffix else shipped()
    raise FileNotFoundError(
      f'there is no config file {path}.{validate.nearest(path.name, beside)}'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'the config must be a readable TOML file, got {path} ({error}).') from error
  if not text.strip():
    raise ValueError(
      f'the config must be a TOML file with an experiment, got {path}, which is empty.'
    )
  try:
    return tomllib.loads(text)
  except ValueError as error:  # of the format, or a number of thousands of digits
    raise ValueError(f'{path} must be valid TOML, got an error: {error}.') from error


def _override(raw: dict[str, Any], text: str) -> None:
  """Writes 'a.b=value' into the tables; unknown keys are found later, with those of the file."""
  key, equals, value = text.partition('=')
  if not equals or not all(key.strip().split('.')):
    raise ValueError(f"an override must be 'section.key=value', got {text!r}.")
  _put(raw, key, toml_value(value.strip()) if value.strip() else _DEFAULT, text)


def _put(raw: dict[str, Any], key: str, value: Any, text: str) -> None:
  """Writes a value into the tables, or goes back to the default; `text` is for messages."""
  *parents, last = key.strip().split('.')
  place: Any = raw
  for i, part in enumerate(parents):
    if isinstance(place, dict):
      place = place.setdefault(part, {})
    else:
      place = _element(place, part, text, parents[:i])
  if isinstance(place, dict) and value is _DEFAULT:
    place.pop(last, None)
    if len(parents) == 1 and not place:
      del raw[parents[0]]  # the whole section is at its default again
  elif isinstance(place, dict):
    place[last] = value
  else:
    _element(place, last, text, parents)
    place[int(last)] = '' if value is _DEFAULT else value


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
  """Returns the experiment with other values of some keys, as overrides name them.

  >>> config = load_config('quickstart')
  >>> with_values(config, {'client.learning_rate': 0.5, 'model.options.hidden': [8]}).model.options
  {'hidden': [8]}

  Raises:
    ValueError: an unknown key, or a value that is not valid; the message names it.
  """
  raw = copy.deepcopy(to_dict(config))
  for key, value in values.items():
    _put(raw, key, value, f'{key}={value}')
  return config_from_dict(raw)


def _element(place: Any, part: str, text: str, parts: Sequence[str]) -> Any:
  where = '.'.join(parts)
  if not isinstance(place, list):
    raise ValueError(f'{where} must be a section to take the override {text!r}, got {place!r}.')
  if not part.isdecimal() or int(part) >= len(place):
    raise ValueError(
      f'the override {text!r} must number one of the {len(place)} elements of {where} from 0, '
      f'got {part!r}.'
    )
  return place[int(part)]


def toml_value(text: str) -> Any:
  """Returns the value of a text in TOML, or the text itself where it is none."""
  try:
    parsed = tomllib.loads(f'value = {text}')
  except ValueError:
    return text
  return parsed['value'] if len(parsed) == 1 else text


def _section(kind: type[Section], raw: Any, where: str) -> Section:
  if isinstance(raw, kind):
    return raw
  if not isinstance(raw, dict):
    raise ValueError(f'{where} must be a table, got {raw!r}.')
  _check_keys(kind, raw, where)
  return kind(**raw)


def _stages(raw: Any) -> tuple[Section, ...]:
  if not isinstance(raw, list | tuple):
    raise ValueError(f'stages must be an array of tables, written [[stages]], got {raw!r}.')
  return tuple(_section(StageSection, x, f'stages[{i}]') for i, x in enumerate(raw))


def _check_keys(kind: type[Section], raw: dict[str, Any], where: str) -> None:
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  for key in raw:
    if key not in fields:
      place = f'[{where}]' if where else 'the top level'
      raise ValueError(
        f'{where + "." if where else ""}{key} must be a key of {place}, got an unknown one.'
        f'{_hint(key, list(fields))}'
      )
  missing = dataclasses.MISSING
  for name, field in fields.items():
    if name not in raw and field.default is missing and field.default_factory is missing:
      raise ValueError(f'{where + "." if where else ""}{name} must be given, got none.')


def _hint(key: str, known: list[str]) -> str:
  """Returns a hint on an unknown key: the nearest known one, or sections that have it, or all."""
  if difflib.get_close_matches(key, known, n=1):
    return validate.nearest(key, known)
  sections = {name: x for name, x in typing.get_type_hints(Config).items() if isinstance(x, type)}
  homes = [
    f'[{name}]'
    for name, x in sections.items()
    if dataclasses.is_dataclass(x) and key in {field.name for field in dataclasses.fields(x)}
  ]
  return f' It is a key of {" and ".join(homes)}.' if homes else f' Known keys: {", ".join(known)}.'
