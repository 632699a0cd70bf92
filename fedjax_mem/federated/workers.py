"""Work that must not stop the event loop: each piece in a daemon thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class Late(Exception):
  """Work that took longer than it may."""


async def run(work: Callable[[], Any], timeout: float | None = None) -> Any:
  """Returns what `work` returns, computed in a thread.

  After a timeout the thread goes on, since no thread can be stopped, and its result is discarded; a
  daemon does not keep the process alive.

  Raises:
    Late: it took longer than `timeout` seconds.
    RuntimeError: it raised what is no ordinary exception, such as `SystemExit`.
  """
  loop = asyncio.get_running_loop()
  done: asyncio.Future = loop.create_future()

  def settle(result: Any, error: Exception | None) -> None:
    if done.done():
      return
    if error is None:
      done.set_result(result)
    else:
      done.set_exception(error)

  def tell(result: Any, error: Exception | None) -> None:
    try:
      loop.call_soon_threadsafe(settle, result, error)
    except RuntimeError:  # the loop has ended: nobody waits for a late result
      return

  def target() -> None:
    try:
      result = work()
    except BaseException as error:  # whatever it is, it belongs to who waits
      if not isinstance(error, Exception) or isinstance(error, StopIteration):
        error = RuntimeError(repr(error))
      tell(None, error)
    else:
      tell(result, None)

  threading.Thread(target=target, daemon=True).start()
  finished, _ = await asyncio.wait((done,), timeout=timeout)
  if not finished:
    done.cancel()
    raise Late(f'no answer within {timeout} seconds')
  return done.result()
