"""What a client demands of a job before it takes part; each refusal is one line.

A client does not trust the server with its machine: it builds a job under `validate.only_from`. It
does not trust it with its data either: it may pin the whole configuration, or require that its
update leaves it noised (`local`) or masked (`secagg`).
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from fedjax_mem.config.load import UNHASHED, Config
from fedjax_mem.core import Looks, Masks, Noises, Round, known, validate
from fedjax_mem.engine import checks

REQUIREMENTS = ('local', 'secagg')


def check_pin(received: Config, pinned: Config) -> None:
  """Raises unless two configurations are the same in all that changes results.

  All settings are compared, not the hashes: those have 32 bits, and whoever writes a configuration
  can try for another with the same hash.

  Args:
    received: from the server.
    pinned: the client's own.

  Raises:
    ValueError: they differ; the message names the first key, in the order of the sections, with
      both values.
  """
  theirs, ours = dict(_settings(received)), dict(_settings(pinned))
  for key in dict.fromkeys((*ours, *theirs)):
    got, wanted = theirs.get(key), ours.get(key)
    if _text(got) != _text(wanted):
      raise ValueError(
        f'{key} must be {_shown(wanted)}, as the configuration of --config pins it, '
        f'got {_shown(got)} from the server.'
      )


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
  """Yields (key, value) of every setting, defaults included, in the order of the sections."""
  for field in dataclasses.fields(config):
    if field.name not in UNHASHED:
      for key, value in _leaves(field.name, getattr(config, field.name)):
        if key != 'model.init':  # where the server has them; `model.init_hash` says what they are
          yield key, value


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
  if dataclasses.is_dataclass(value):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, dict):
    for name, x in value.items():
      yield from _leaves(f'{key}.{name}', x)
  elif isinstance(value, tuple):  # the stages
    for i, x in enumerate(value):
      yield from _leaves(f'{key}[{i}]', x)
  else:
    yield key, value


def _text(value: Any) -> str:
  """Returns a value as the hash of a configuration has it: 1, 1.0 and true are three values."""
  return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
  return 'left out' if value is None else repr(value)


def check_required(layers: Round, require: str | None) -> None:
  """Raises unless a job protects the client's update as the client requires.

  It reads what the layers state, and how much noise there is it does not judge: pin the
  configuration to settle that.

  Args:
    layers: of the round that the job describes.
    require: 'local': the client clips and adds noise to what it sends, by client or inside of
      training by example; 'secagg': the update leaves it under a mask, so that the server sees
      sums of at least two clients. None: nothing.

  Raises:
    ValueError: another requirement, or a job that does not meet it, with what it has instead.
    IncompatibleStages: layers that break what they state.
  """
  if require is None:
    return
  validate.one_of(REQUIREMENTS, require=require)
  checks.composed(layers)
  has = _protection(layers)
  if require == 'local' and not any(_is_local(layers, *x) for x in layers.having(Noises)):
    _refuse(
      require, 'clip and add noise on the client (stages local or local_laplace, or dp_sgd)', has
    )
  if require == 'secagg' and not layers.having(Masks):
    _refuse(require, 'mask what the client sends (the stage mask)', has)
  if require == 'secagg' and layers.draws.capacity < 2:
    _refuse(require, 'sum at least two clients', f'{has} in cohorts of one')
  for layer in layers.selecting:
    looks = layer.fact(Looks)
    if looks is None or looks.at != 'nothing':
      _refuse(require, 'select clients without a look at their data', f'{layer.name!r}')


def _refuse(require: str, wanted: str, has: str) -> None:
  raise ValueError(f'the job must {wanted} under --require {require}, got {has}.')


def _is_local(layers: Round, layer: Any, side: str, noise: Noises) -> bool:
  """Returns whether this is noise that the client adds to what it has clipped."""
  if noise.trust != 'local':  # on the server side no noise may call itself local
    return False
  if noise.unit == 'example':
    return True  # it is inside of training, and clips each example's gradient itself
  bound = layers.bound(layer, side, {})._asdict()
  return all(known(bound[norm]) for norm in noise.mechanism.norms)


def _protection(layers: Round) -> str:
  """Returns what a job does to protect an update, in words."""
  found = []
  for layer, side, noise in layers.having(Noises):
    share = noise.trust == 'central' and side == 'client'
    kind = 'distributed' if share else noise.trust
    found.append(f'{kind} noise by {noise.unit} ({layer.name!r})')
  found += [f'a mask ({layer.name!r})' for layer, _, _ in layers.having(Masks)]
  return ' and '.join(found) or 'neither noise nor a mask'


def check_noise_seed(config: Config, repeatable: bool) -> None:
  """Raises unless noise that others can repeat is what this side was started for.

  The server and every client call it: with `noise_seed` each could compute the noise of the others.

  Args:
    config: the job's configuration.
    repeatable: whether this side was started with --repeatable-noise.

  Raises:
    ValueError: a `noise_seed` without the flag, or the flag without a `noise_seed`.
  """
  if config.noise_seed is not None and not repeatable:
    raise ValueError(
      'noise_seed must be left out on real machines, where it would let every party subtract the '
      f'noise, got {config.noise_seed!r}: or start the server and every client with '
      '--repeatable-noise, and claim nothing against them.'
    )
  if repeatable and config.noise_seed is None:
    raise ValueError(
      'noise_seed must be given with --repeatable-noise, got none: add it to the configuration, or '
      'leave the flag out.'
    )
