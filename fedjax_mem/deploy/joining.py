"""The command of a client's machine: checks, then the engine, until the run has ended."""

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import filelock

from fedjax_mem.config.load import load_config
from fedjax_mem.core import validate
from fedjax_mem.deploy import certificates, processes
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.processes import Engine
from fedjax_mem.deploy.trust import REQUIREMENTS

_LOOK = 0.5  # seconds between two looks
_LINES = 5.0  # least seconds between two lines about rounds
_RESTARTS = 5  # of the engine's client, if it ends by itself


def join(
  kit: Kit,
  *,
  data: str | None = None,
  pin: str | None = None,
  require: str | None = None,
  allow: tuple[str, ...] = (),
  repeatable: bool = False,
  data_dir: str | None = None,
  wait: float = 60.0,
  say: Callable[[str], None] = print,
) -> str:
  """Takes part in the deployment until its run has ended; returns the server's last word.

  Args:
    kit: the client's kit, checked.
    data: path of the client's own examples; None: its part of the configured data.
    pin: path of the configuration that alone is accepted.
    require: 'local' or 'secagg': a job that protects the update less is refused.
    allow: modules whose factories a configuration may name.
    repeatable: whether noise may come from the configuration's `noise_seed`.
    data_dir: where prepared data sets are.
    wait: seconds for which a server that is not up yet is waited for.
    say: shows a line.

  Raises:
    ValueError: bad input, or what the server asks is refused.
    ConnectionError: nobody listens at the server's address.
    RuntimeError: this client has failed.
  """
  _check(data, pin, require, allow)
  outcome = kit.work / 'outcome.json'
  place = {
    'kit': str(kit.path.resolve()),
    'work': str(kit.work.resolve()),
    'outcome': str(outcome.resolve()),
    'data': data and str(pathlib.Path(data).resolve()),
    'data_dir': data_dir and str(pathlib.Path(data_dir).resolve()),
    'pin': pin and str(pathlib.Path(pin).resolve()),
    'require': require,
    'allow': list(allow),
    'repeatable': repeatable,
  }
  kit.work.mkdir(mode=0o700, parents=True, exist_ok=True)
  lock = processes.locked(kit.work)  # also while the server is waited for
  try:
    say(f'{kit.name}: looking for the server at {kit.host}:{kit.port}')
    certificates.probe(kit, wait)
    for path in (outcome, kit.taken, kit.standing):
      path.unlink(missing_ok=True)
    return _told_by(kit, place, lock, say)
  finally:
    lock.release()


def _told_by(
  kit: Kit, place: dict[str, Any], lock: filelock.BaseFileLock, say: Callable[[str], None]
) -> str:
  """Runs the engine until the run has ended; returns the server's last word.

  Raises:
    ValueError: the server does not admit this client, or it refuses the job.
    RuntimeError: it has failed.
  """
  shown = _Shown(kit, say)
  for _ in range(_RESTARTS):
    with Engine(kit, kit.work, place, lock) as engine:
      say(f'{kit.name}: taking part; log of the engine: {engine.log}')
      ended = admitted = False
      while not ended:
        ended = engine.code() is not None  # before the look at what it has said
        line = _told(pathlib.Path(place['outcome']))
        if line is not None:
          return line
        admitted = admitted or engine.registered()
        why = None if admitted else engine.refused()
        if why is not None:
          raise ValueError(why)
        shown.look()
        time.sleep(_LOOK)
  raise RuntimeError(f"the engine's client has ended {_RESTARTS} times: see {engine.log}.")


class _Shown:
  """Shows the rounds that this client answers, a line every few seconds."""

  def __init__(self, kit: Kit, say: Callable[[str], None]):
    self._kit, self._say = kit, say
    self._round, self._at = 0, -math.inf

  def look(self) -> None:
    """Shows the last round, if it is a new one."""
    try:
      round = int(json.loads(self._kit.standing.read_text()))
    except (OSError, ValueError):
      return
    if round != self._round and time.monotonic() - self._at >= _LINES:
      self._say(f'{self._kit.name}: round {round} answered')
      self._round, self._at = round, time.monotonic()


def _check(data: str | None, pin: str | None, require: str | None, allow: tuple[str, ...]) -> None:
  """Raises what can be said before anything is started."""
  if data is not None and not pathlib.Path(data).exists():
    raise ValueError(f'--data must be a file or folder of examples, got {data!r}: there is none.')
  if pin is not None:
    load_config(pin)
  if require is not None:
    validate.one_of(REQUIREMENTS, require=require)
  with validate.only_from(allow):
    pass


def _told(outcome: pathlib.Path) -> str | None:
  """Returns the server's last word, if the run has ended; None while it goes on.

  Raises:
    ValueError: this client refuses the job.
    RuntimeError: it has failed.
  """
  try:
    said = json.loads(outcome.read_text())
  except (OSError, ValueError):
    return None
  line = ''.join(x if x.isprintable() else ' ' for x in str(said.get('line')))
  if said.get('status') == 'refused':
    raise ValueError(line)
  if said.get('status') == 'failed':
    raise RuntimeError(line)
  return line
