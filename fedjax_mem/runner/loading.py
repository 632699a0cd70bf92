"""A run's model and parameters, read from its folder alone: to use them, or to export them.

The data are not needed: what the model has to know of them is in the manifest.
"""

import contextlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax

from fedjax_mem._version import __version__
from fedjax_mem.config import build
from fedjax_mem.config.load import Config
from fedjax_mem.core import keys, validate
from fedjax_mem.models import saved
from fedjax_mem.models.base import Model, Outline
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.tasks import as_task


class Loaded(NamedTuple):
  """What a run has trained.

  Attributes:
    model: the model; `model.apply(params, x)` gives its outputs for preprocessed inputs.
    params: the server's parameters.
    config: the experiment.
    round: rounds that the parameters have been trained.
    labels: what the K outputs stand for, where labels had to be numbered; else None.
  """

  model: Model
  params: Any
  config: Config
  round: int
  labels: list[Any] | None


def load(run: str | os.PathLike[str]) -> Loaded:
  """Returns what a run has trained: at its end, or else in its newest sound checkpoint.

  The folder may be copied anywhere. A model of 'package.module:factory' has to be importable.

  >>> import contextlib, tempfile
  >>> config = fm.load_config('quickstart', ['rounds=1', 'data.num_clients=10'])
  >>> with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
  ...   loaded = load(fm.run(config, out, quiet=True).folder)
  >>> loaded.round, loaded.model.apply(loaded.params, jnp.ones((2, 8, 8, 1))).shape
  (1, (2, 10))

  Args:
    run: the run's folder.

  Raises:
    ValueError: it is not a run's folder, one of before 0.2 whose manifest lacks the model's shape,
      its model cannot be imported (the message names it), its arrays do not fit the model, or it
      has not ended and its clients keep a part of the model.
    CheckpointError: it has not ended, and no checkpoint is sound.
  """
  folder = RunFolder(pathlib.Path(run))
  config, said = folder.config, folder.manifest
  shape = said.get('model')
  if not isinstance(shape, dict):
    raise ValueError(
      f'{folder.path / "manifest.json"} must say the shapes of the model, got none: the run has '
      'not begun its rounds, or is of an earlier version.'
    )
  task = as_task(said.get('task', 'classification'))
  outline = Outline(tuple(shape['input_shape']), int(shape['outputs']), task)
  model = build.build_model(config, outline)
  # A run that was killed at its end may have the file, but not yet say so.
  if said.get('status') == 'finished' and (folder.path / saved.FINAL).is_file():
    number, held = int(said['rounds_done']), saved.read(folder.path)
  elif model.statistics == 'local':
    raise ValueError(
      f"{folder.path} must have finished for what its clients keep (model.statistics = 'local'), "
      f'got {said.get("status")!r}: go on with: fedjax-mem resume {folder.path}; one whose '
      'parameters are not finite leaves none.'
    )
  else:
    where, run_id = folder.path / 'checkpoints', said.get('run_id')
    with contextlib.closing(Checkpoints(where, run_id=run_id, read_only=True)) as kept:
      number, held = kept.parameters()
  like = jax.eval_shape(model.init, keys.like())
  params = saved.fitted(held, like, str(folder.path))
  return Loaded(model, params, config, number, said.get('labels'))


def export(
  run: str | os.PathLike[str],
  format: str = 'safetensors',
  out: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Writes the parameters of a run, and nothing else of it, for other programs; returns the path.

  Such as `export('runs/quickstart-d5ec03a3', 'msgpack')`.

  >>> export('runs/quickstart-d5ec03a3', 'npz')
  Traceback (most recent call last):
    ...
  ValueError: format must be one of 'safetensors', 'msgpack', 'orbax', got 'npz'.

  Args:
    run: the run's folder.
    format: 'safetensors', 'msgpack' (of flax) or 'orbax' (a folder).
    out: path to write; None: the name of the run's folder, with the format's suffix, in the current
      folder.

  Raises:
    ValueError: an unknown format, a path that is there as a folder or cannot be written, or as
      `load`.
  """
  validate.one_of(saved.FORMATS, format=format)
  suffix = saved.FORMATS[format]
  loaded, name = load(run), pathlib.Path(run).resolve().name
  path = pathlib.Path(name + (suffix or '-orbax') if out is None else out)
  if path.suffix != suffix and (suffix or path.suffix in saved.FORMATS.values()):
    raise ValueError(f'out must end in {suffix!r} for the format {format!r}, got {str(path)!r}.')
  section = loaded.config.model
  facts = {
    'fedjax_mem': __version__,
    'run': name,
    'round': str(loaded.round),
    'model': section.name,
    'options': json.dumps(section.options),
  }
  saved.write(path, loaded.params, facts)
  return path
