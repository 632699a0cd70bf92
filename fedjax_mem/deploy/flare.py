"""The two classes that the engine loads: one on the server, one on each client. Both are thin.

A job names them and carries `job.bin`; nothing else in a job is code. What they call is settled by
this package and by the place file of their own machine.
"""

import json
import os
import pathlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedjax_mem.deploy import engine, watch
from fedjax_mem.deploy.messages import Refused

TASK = 'blob'
BLOB = 'blob'
EXCHANGE = 'exchange'
PAYLOAD = 'job.bin'
POLL = 0.02  # seconds between two looks at a task


def place() -> dict[str, Any]:
  """Returns what this machine's command wrote for its jobs."""
  content = json.loads(pathlib.Path(os.environ['FEDJAX_MEM_DEPLOY']).read_text())
  if not isinstance(content, dict):
    raise ValueError('the place file must be a JSON object.')
  return content


def tell(where: Mapping[str, Any], status: str, line: str) -> None:
  """Writes the outcome of a job where this machine's command looks for it."""
  if 'outcome' in where:
    content = {'status': status, 'line': ' '.join(line.split())}
    engine.write_json(pathlib.Path(where['outcome']), content)


def words(error: Exception) -> str:
  """Returns what an error says; with the name of its class, if it is not one of this package."""
  ours = type(error).__module__.startswith('fedjax_mem.')
  return str(error) if ours else f'{type(error).__name__}: {error}'


class Link:
  """What the server's rounds see of the engine: its clients, and one exchange at a time."""

  def __init__(self, controller: 'Rounds', fl_ctx: FLContext, abort: Signal):
    self._controller = controller
    self._fl_ctx = fl_ctx
    self._abort = abort

  def connected(self) -> frozenset[str]:
    """Returns the names of the clients of this job that showed signs of life of late."""
    return self._controller.alive()

  def stopped(self) -> bool:
    """Returns whether the job was aborted."""
    return bool(self._abort.triggered)

  def exchange(self, blobs: Mapping[str, bytes], timeout: float) -> dict[str, bytes]:
    """Sends each named client its own bytes, and returns what they answer.

    Args:
      blobs: the bytes for each client, by name.
      timeout: seconds after which it returns without the rest.

    Returns:
      The answers by the name that the engine has authenticated, of this exchange alone: what comes
      later or is an error is dropped. A client that is not connected is left out at once.
    """
    collected = _Answered(uuid.uuid4().hex, self.connected() & set(blobs))
    deadline = time.monotonic() + timeout
    tasks = [self._task(name, blobs[name], collected) for name in collected.waiting()]
    try:
      while waiting := collected.waiting():
        left = deadline - time.monotonic()
        if left <= 0 or self.stopped() or not waiting & self.connected():
          break
        collected.wait(min(left, 0.5))
    finally:
      answers = collected.close()
      for task in tasks:
        self._controller.cancel_task(task)
    return answers

  def _task(self, name: str, blob: bytes, collected: '_Answered') -> Task:
    data = Shareable()
    data[BLOB] = blob
    data[EXCHANGE] = collected.exchange
    task = Task(name=TASK, data=data, result_received_cb=collected.take)
    self._controller.broadcast(task, self._fl_ctx, targets=[name])
    return task


class _Answered:
  """The answers of one exchange; the engine adds to them from threads of its own."""

  def __init__(self, exchange: str, names: frozenset[str]):
    self.exchange = exchange
    self._names = names
    self._answers: dict[str, bytes] = {}
    self._done: set[str] = set()
    self._open = True
    self._changed = threading.Condition()

  def take(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
    """Takes the result of a client's task."""
    del fl_ctx
    result, name = client_task.result, client_task.client.name
    client_task.result = None  # frees the bytes with the exchange
    with self._changed:
      if not self._open or name not in self._names or name in self._done:
        return
      self._done.add(name)
      blob = result.get(BLOB) if isinstance(result, Shareable) else None
      if (
        isinstance(blob, bytes)
        and result.get_return_code() == ReturnCode.OK
        and result.get(EXCHANGE) == self.exchange
      ):
        self._answers[name] = blob
      self._changed.notify_all()

  def waiting(self) -> frozenset[str]:
    """Returns the names of the clients that have not answered."""
    with self._changed:
      return self._names - self._done

  def wait(self, timeout: float) -> None:
    """Waits for the next answer, up to `timeout` seconds."""
    with self._changed:
      if len(self._done) < len(self._names):
        self._changed.wait(timeout)

  def close(self) -> dict[str, bytes]:
    """Returns the answers; later ones are dropped."""
    with self._changed:
      self._open = False
      return dict(self._answers)


class Rounds(Controller):
  """The server's side of a job: runs the rounds of `serving.serve`."""

  def __init__(self) -> None:
    watch.end_with_engine()
    super().__init__()
    self._seen: dict[str, float] = {}
    self._started = 0.0

  def start_controller(self, fl_ctx: FLContext) -> None:
    """Looks at tasks more often than the engine does by itself, and notes each sign of life.

    The engine's own word for a dead client will not do: it holds one alive that was killed and
    came back at once, though its part of the job is gone.
    """
    del fl_ctx
    self._started = time.monotonic()
    communicator = self.communicator
    communicator._task_check_period = POLL
    active = communicator.client_is_active

    def seen(name: str, reason: str, ctx: FLContext) -> None:
      self._seen[name] = time.monotonic()
      active(name, reason, ctx)

    communicator.client_is_active = seen

  def alive(self) -> frozenset[str]:
    """Returns the names of the clients of this job that showed signs of life of late."""
    now, never = time.monotonic(), self._started + engine.START - engine.SILENCE
    return frozenset(
      client.name
      for client in self._engine.get_clients()
      if now - self._seen.get(client.name, never) < engine.SILENCE
      and self.get_client_disconnect_time(client.name) is None
    )

  def stop_controller(self, fl_ctx: FLContext) -> None:
    """Does nothing: `control_flow` has ended."""

  def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
    """Runs the rounds, and tells their outcome."""
    where = place()
    try:
      from fedjax_mem.deploy.serving import serve

      status = serve(where, Link(self, fl_ctx, abort_signal))
      tell(where, status, '')
    except Refused as error:
      self._fail(where, 'refused', str(error), fl_ctx)
    except Exception as error:  # whatever it is, the command on this machine has to say it
      self.log_exception(fl_ctx, 'the rounds failed')
      self._fail(where, 'failed', words(error), fl_ctx)

  def _fail(self, where: Mapping[str, Any], status: str, line: str, fl_ctx: FLContext) -> None:
    tell(where, status, line)
    self.system_panic(line, fl_ctx)


class Answers(Executor):
  """A client's side of a job: opens what `answering.open` returns, and answers each message.

  A refusal is told to this machine's own command; the server gets an error and nothing of its text.
  """

  def __init__(self) -> None:
    watch.end_with_engine()
    super().__init__()
    self._where: dict[str, Any] = {}
    self._answerer: Callable[[bytes], bytes] | None = None
    self._opened = threading.Event()

  def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
    """Opens the answerer when the job starts, which takes seconds: jax is imported, code compiled.

    In a thread of its own, since the engine sends no sign of life before this returns.
    """
    if event_type == EventType.START_RUN:
      self._where = place()
      workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
      config = pathlib.Path(workspace.get_app_dir(fl_ctx.get_job_id()), 'config')

      def opened() -> None:
        self._guarded(lambda _: self._open((config / PAYLOAD).read_bytes()), fl_ctx)
        self._opened.set()

      threading.Thread(target=opened, name='open', daemon=True).start()

  def execute(
    self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
  ) -> Shareable:
    """Answers one message."""
    while not self._opened.wait(0.1):
      if abort_signal.triggered:
        return make_reply(ReturnCode.TASK_ABORTED)
    answerer, blob = self._answerer, shareable.get(BLOB)
    if task_name != TASK or answerer is None or not isinstance(blob, bytes):
      return make_reply(ReturnCode.EXECUTION_EXCEPTION)
    answer = self._guarded(lambda _: answerer(blob), fl_ctx)
    if answer is None:
      return make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply = Shareable()
    reply[BLOB] = answer
    reply[EXCHANGE] = shareable.get(EXCHANGE)
    return reply

  def _open(self, payload: bytes) -> None:
    from fedjax_mem.deploy.answering import open as take

    self._answerer = take(self._where, payload)

  def _guarded(self, work: Callable[[FLContext], Any], fl_ctx: FLContext) -> Any:
    """Returns what `work` does, or None once it has told why not."""
    try:
      return work(fl_ctx)
    except Refused as error:
      tell(self._where, 'refused', str(error))
    except Exception as error:  # the worker stays: the job of the others goes on
      self.log_exception(fl_ctx, 'no answer')
      tell(self._where, 'failed', words(error))
    return None
