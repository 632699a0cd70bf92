"""Diagnosis of the machine: what is installed, what is missing, and the commands to get it."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PYTHON = (3, 11)
_PACKAGE = 'fedjax_mem'
# The requirements if the package runs from its sources, where it has no metadata.
_NEEDED = (
  'array_record', 'chex', 'cryptography', 'dp-accounting', 'filelock', 'flax', 'jax', 'jinja2',
  'matplotlib', 'numpy', 'optax', 'orbax-checkpoint', 'rich', 'scikit-learn', 'tensorflow-datasets',
  'tomli-w', 'tyro',
)  # fmt: skip
_FEW_BYTES = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Check:
  """One line of the diagnosis.

  Attributes:
    name: name of the checked item.
    ok: whether the item is as it should be; None: it is missing, but optional.
    detail: what was found.
    remedy: command or advice to fix it; '' if nothing has to be done.
  """

  name: str
  ok: bool | None
  detail: str
  remedy: str = ''


def diagnose(out: str | os.PathLike[str] = 'runs') -> list[Check]:
  """Returns the checks of this machine; never raises.

  Args:
    out: folder that runs are written into.
  """
  parts: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
    ('python', _python),
    ('packages', _packages),
    ('devices', _devices),
    ('machine', _machine),
    ('folders', lambda: _folders(out)),
    ('data', _data),
  )
  checks: list[Check] = []
  for name, part in parts:
    try:
      checks += part()
    except Exception as error:  # a failing check is part of the diagnosis
      checks.append(Check(name, False, f'{type(error).__name__}: {error}', _install('')))
  return checks


def healthy(checks: Sequence[Check]) -> bool:
  """Returns whether everything that all runs need is there."""
  return all(check.ok is not False for check in checks)


def print_checks(checks: Sequence[Check], console: Console | None = None) -> None:
  """Prints the diagnosis, then the remedies."""
  console = console or Console()
  marks = {True: Text('ok', 'green'), False: Text('missing', 'bold red'), None: Text('–', 'yellow')}
  table = Table(box=None, pad_edge=False, show_header=False)
  for check in checks:
    table.add_row(marks[check.ok], Text(check.name), Text(check.detail, overflow='fold'))
  console.print(table)
  for ok, head in ((False, 'To be mended:'), (None, 'If you need it:')):
    remedies = [check for check in checks if check.ok is ok and check.remedy]
    if remedies:
      console.print(Text(f'\n{head}', 'bold'))
    for check in remedies:
      console.print(Text(f'  {check.name}: {check.remedy}'), soft_wrap=True)
  if healthy(checks):
    console.print('\nReady: nothing that a run needs is missing.')


def _install(what: str) -> str:
  """Returns the command that installs a package into the running Python's environment."""
  return f'{sys.executable} -m pip install --upgrade {what or _PACKAGE}'


def _python() -> list[Check]:
  fits = sys.version_info[:2] >= _PYTHON
  wanted = '.'.join(map(str, _PYTHON))
  remedy = '' if fits else f'install Python {wanted} or later and make a new environment with it'
  detail = (
    f'{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}'
  )
  return [Check('python', fits, detail, remedy)]


def _packages() -> list[Check]:
  try:
    named = importlib.metadata.requires(_PACKAGE) or []
  except importlib.metadata.PackageNotFoundError:
    named = list(_NEEDED)
  needs = [Requirement(text) for text in named]
  checks = [_package(need, None) for need in needs if need.marker is None]
  return [*checks, _package(Requirement('h5py'), 'reads the HDF5 files of TFF')]


def _package(need: Requirement, purpose: str | None) -> Check:
  """Returns the check of a package and its version; a package with a purpose is optional."""
  command = _install(f"'{need}'")
  try:
    version = importlib.metadata.version(need.name)
  except importlib.metadata.PackageNotFoundError:
    detail = f'not installed; {purpose}' if purpose else 'not installed'
    return Check(need.name, None if purpose else False, detail, command)
  if not need.specifier.contains(version, prereleases=True):
    return Check(need.name, False, f'{version}, but {need.specifier} is needed', command)
  return Check(need.name, True, version)


def _devices() -> list[Check]:
  import jax

  chosen = os.environ.get('JAX_PLATFORMS')
  try:
    devices = jax.devices()
  except Exception as error:  # jax raises several errors for a missing platform, some are empty
    remedy = 'unset JAX_PLATFORMS' if chosen else _install('jax')
    reason = str(error).splitlines()[0] if str(error) else f'no devices of {chosen!r}'
    return [Check('devices', False, reason, remedy)]
  kinds = sorted({device.device_kind for device in devices})
  backend = jax.default_backend()
  detail = f'{len(devices)} × {", ".join(kinds)} (backend {backend})'
  if chosen:
    detail += f', JAX_PLATFORMS={chosen}'
  checks = [Check('devices', True, detail)]
  if backend == 'cpu' and not chosen and pathlib.Path('/dev/nvidiactl').exists():
    command = _install("'jax[cuda12]'")
    checks.append(Check('gpu', None, 'an NVIDIA GPU is there, but JAX does not see it', command))
  return checks


def _machine() -> list[Check]:
  usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  checks = [Check('cores', True, f'{usable} usable of {os.cpu_count()}')]
  total, free = _memory()
  if total is not None and free is not None:
    enough = free >= _FEW_BYTES
    remedy = '' if enough else 'end other programs, or set execution.mode = "loop" for small runs'
    detail = f'{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB'
    checks.append(Check('memory', True if enough else None, detail, remedy))
  return checks


def _memory() -> tuple[float | None, float | None]:
  """Returns (total, available) bytes of memory, within the container's limit if there is one."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    sizes = {line.split(':')[0]: 1024 * int(line.split()[1]) for line in lines}
    total, free = sizes['MemTotal'], sizes['MemAvailable']
  except (OSError, KeyError, ValueError, IndexError):
    return None, None
  try:
    group = pathlib.Path('/sys/fs/cgroup')
    limit = int((group / 'memory.max').read_text())
    used = int((group / 'memory.current').read_text())
  except (OSError, ValueError):
    return total, free
  return min(total, limit), max(0, min(free, limit - used))


def _folders(out: str | os.PathLike[str]) -> list[Check]:
  from fedjax_mem.data import places

  return [
    _folder('run folder', pathlib.Path(out), 'choose another one with --out DIR'),
    _folder(
      'data folder',
      places.data_folder(),
      f'export {places.VARIABLE}=DIR with a folder that you may write to',
    ),
  ]


def _folder(name: str, path: pathlib.Path, remedy: str) -> Check:
  """Returns the check that files can be made in a folder, or that the folder can be made."""
  path = path.absolute()
  there = next((x for x in (path, *path.parents) if x.exists()), path)
  try:
    with tempfile.TemporaryFile(dir=there):
      pass
    free = shutil.disk_usage(there).free
  except OSError as error:
    return Check(name, False, f'{path} cannot be written: {error.strerror or error}', remedy)
  made = '' if path.exists() else ', will be made'
  return Check(name, True, f'{path}{made}, {free / 1e9:.1f} GB free')


def _data() -> list[Check]:
  from fedjax_mem import data

  checks = []
  for entry in data.describe():
    found = f'{entry.where}, not prepared yet' if entry.where else 'not found'
    detail = entry.where if entry.available else found
    checks.append(
      Check(f'data {entry.name}', True if entry.available else None, detail, entry.remedy)
    )
  return checks
