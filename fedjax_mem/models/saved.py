"""A model's parameters in files: safetensors, msgpack, or an Orbax folder.

Each array has a name, the path to it in the tree of parameters ('hidden_0/kernel'). A file holds
the arrays alone, so any library that reads its format can use them. A finished run has them in
`params.safetensors`.
"""

import contextlib
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Tree, validate

FORMATS = {'safetensors': '.safetensors', 'msgpack': '.msgpack', 'orbax': ''}
FINAL = 'params.safetensors'  # of a finished run, in its folder
Arrays = dict[str, np.ndarray]


def arrays(params: Tree) -> Arrays:
  """Returns path -> array of a tree of parameters, in the order of its leaves.

  >>> sorted(arrays({'dense': {'kernel': np.ones((2, 3)), 'bias': np.zeros(3)}}))
  ['dense/bias', 'dense/kernel']

  Raises:
    ValueError: two leaves have one path, such as those of {'a/b': x, 'a': {'b': y}}.
  """
  found: Arrays = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = _name(path)
    if name in found:
      raise ValueError(f'params must have one array at each path, got two at {name!r}.')
    found[name] = np.asarray(leaf)
  return found


def _name(path: tuple[Any, ...]) -> str:
  # A tree that is one array has no path.
  return jax.tree_util.keystr(path, simple=True, separator='/') or 'params'


def digest(held: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of arrays, 64 hexadecimal digits: of names, dtypes, shapes and values.

  It is the same whichever format holds them, and in whatever order.
  """
  made = hashlib.sha256()
  for name in sorted(held):
    x = np.ascontiguousarray(held[name])
    made.update(f'{len(name)} {name} {x.dtype.name} {x.shape}\n'.encode())
    made.update(x.tobytes())
  return made.hexdigest()


def fitted(held: Mapping[str, Any], like: Tree, where: str) -> Tree:
  """Returns arrays as a tree of parameters.

  Args:
    held: path -> array; a dtype that is not the parameters' is converted if it is floating, too.
    like: shapes and dtypes of the parameters, a tree.
    where: what holds the arrays, for error messages.

  Raises:
    ValueError: an array is missing, unknown, of another shape, or not of finite numbers; all that
      are wrong are named by their paths.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(like)
  wanted = {_name(path): leaf for path, leaf in leaves}
  wrong = [f'{name!r} is missing' for name in wanted if name not in held]
  for name in held:
    if name not in wanted:
      near = validate.nearest(name, wanted).strip()
      wrong.append(f'{name!r} is not of the model' + (f' ({near})' if near else ''))
  for name, leaf in wanted.items():
    if name in held:
      wrong += _misfit(name, held[name], leaf)
  if wrong:
    more = f', and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise ValueError(f'{where} must hold the arrays of the model: {"; ".join(wrong[:5])}{more}.')
  made = [jnp.asarray(held[name], leaf.dtype) for name, leaf in wanted.items()]
  return jax.tree.unflatten(structure, made)


def _misfit(name: str, x: Any, leaf: Any) -> list[str]:
  """Returns what is wrong with an array, none or one."""
  if tuple(x.shape) != tuple(leaf.shape):
    return [f'{name!r} is {tuple(x.shape)!r}, the model has {tuple(leaf.shape)!r}']
  floats = [jnp.issubdtype(t, jnp.floating) for t in (x.dtype, leaf.dtype)]
  if floats != [True, True] and x.dtype != leaf.dtype:
    return [f'{name!r} is {x.dtype}, the model has {leaf.dtype}']
  if floats[0] and not np.isfinite(np.asarray(x, np.float32)).all():
    return [f'{name!r} has values that are not finite']
  return []


def write(path: pathlib.Path, params: Tree, facts: Mapping[str, str] | None = None) -> None:
  """Writes parameters; the end of the name says how: .safetensors, .msgpack, else an Orbax folder.

  The file is written under another name and then renamed, so it is never incomplete.

  Args:
    path: what is written; a file that is there is replaced, a folder refused.
    params: the parameters.
    facts: texts beside them, which only a safetensors file has room for.

  Raises:
    ValueError: the path is a folder, or cannot be written.
  """
  if path.is_dir():
    raise ValueError(f'{path} must be a path where nothing is, got a folder.')
  held = arrays(params)
  beside = path.with_name(f'.{path.name}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
      from safetensors.numpy import save_file

      save_file(_contiguous(held), str(beside), dict(facts or {}))
    elif path.suffix == '.msgpack':
      from flax import serialization

      beside.write_bytes(serialization.msgpack_serialize(_nested(held)))
    else:
      _orbax().save(beside.absolute(), _nested(held))
    beside.replace(path)
  except OSError as error:
    raise ValueError(f'{path} must be writable, got {error}.') from error
  finally:
    shutil.rmtree(beside, ignore_errors=True)  # these exist only after an error
    with contextlib.suppress(OSError):
      beside.unlink()


def _contiguous(held: Arrays) -> Arrays:
  # The library writes the bytes of an array as they lie.
  return {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in held.items()}


def read(path: pathlib.Path) -> Arrays:
  """Returns path -> array of a file, of an Orbax folder, or of a finished run's folder.

  Raises:
    ValueError: there is nothing, or nothing that can be read; an unfinished run.
  """
  if (path / 'manifest.json').is_file():
    if not (path / FINAL).is_file():
      raise ValueError(
        f'{path} must be a run that has ended, with {FINAL}, got one without: '
        f'`fedjax-mem export {path}` writes the parameters of its newest checkpoint.'
      )
    path /= FINAL
  if not path.exists():
    raise ValueError(f'{path} must be a file of parameters or a run, got a path where nothing is.')
  try:
    if path.is_dir():
      return _flat(_orbax().restore(path.absolute()))
    if path.suffix == '.safetensors':
      from safetensors.numpy import load_file

      return dict(load_file(str(path)))
    if path.suffix == '.msgpack':
      from flax import serialization

      return _flat(serialization.msgpack_restore(path.read_bytes()))
  except Exception as error:  # a damaged file may raise anything
    said = ' '.join(str(error).split())[:160] or type(error).__name__
    raise ValueError(f'{path} must hold parameters, got what cannot be read: {said}') from error
  raise ValueError(
    f'{path} must end in .safetensors or .msgpack, or be a folder, got a file named {path.name!r}.'
  )


def _orbax() -> Any:
  import orbax.checkpoint as ocp  # it takes a while

  logging.getLogger('absl').setLevel(logging.CRITICAL)  # `read` and `write` report its errors
  return ocp.PyTreeCheckpointer()


def _nested(held: Arrays) -> dict[str, Any]:
  """Returns arrays as flax nests them: {'a': {'b': x}} of 'a/b'."""
  made: dict[str, Any] = {}
  for name, x in held.items():
    *folders, last = name.split('/')
    inside = made
    for folder in folders:
      inside = inside.setdefault(folder, {})
    inside[last] = x
  return made


def _flat(nested: Any, before: str = '') -> Arrays:
  if not isinstance(nested, dict):
    return {before: np.asarray(nested)}
  parts = (_flat(x, f'{before}/{key}' if before else str(key)) for key, x in nested.items())
  return {name: x for part in parts for name, x in part.items()}
