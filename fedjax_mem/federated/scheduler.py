"""Concurrent training of clients, each in a thread that does not block the event loop."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar('T')
_log = logging.getLogger('fedjax_mem.federated')


class Late(Exception):
  """Work took longer than its timeout."""


async def threaded(work: Callable[[], T], timeout: float | None = None) -> T:
  """Returns the result of `work`, computed in a thread.

  After a timeout the thread goes on, since a thread cannot be stopped, and its result is discarded.
  It is a daemon, which does not keep the process alive.

  Raises:
    Late: `work` took longer than `timeout` seconds.
    RuntimeError: `work` raised something else than an `Exception`, such as `SystemExit`.
  """
  loop = asyncio.get_running_loop()
  done: asyncio.Future[T] = loop.create_future()

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
    except RuntimeError:  # the event loop has ended: the late result is not needed
      return

  def target() -> None:
    try:
      result = work()
    except BaseException as error:  # raised again in the task that waits
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


async def trained(
  chosen: Sequence[Any], timeout: float | None
) -> tuple[list[tuple[str, Any]], dict[str, str]]:
  """Trains clients concurrently, at most one per core.

  Args:
    chosen: the selected clients.
    timeout: seconds after which a client is left out, or None.

  Returns:
    (pairs of client id and update, client id -> reason why it was left out).
  """
  slots = asyncio.Semaphore(os.cpu_count() or 1)

  async def one(client: Any) -> Any:
    async with slots:
      return await threaded(lambda: asyncio.run(client.train_round()), timeout)

  answers = await asyncio.gather(*map(one, chosen), return_exceptions=True)
  updates, left_out = [], {}
  for client, answer in zip(chosen, answers, strict=True):
    if isinstance(answer, BaseException):
      why = str(answer) if isinstance(answer, Late) else repr(answer)
      left_out[client.client_id] = why
      _log.warning('client %r left out: %s', client.client_id, why)
    else:
      updates.append((client.client_id, answer))
  return updates, left_out
