"""The first process of the engine on a machine: `python -m fedjax_mem.deploy.parent`.

It runs the engine's own main module and ends, with all that it started, when the process that
started it ends, however that happens.
"""

import os
import runpy
import sys

from fedjax_mem.deploy import engine, guards, watch

_MODULES = {
  'server': ('nvflare.private.fed.app.server.server_train', 'fed_server.json'),
  'client': ('nvflare.private.fed.app.client.client_train', 'fed_client.json'),
}


def main(role: str, folder: str, name: str, starter: int) -> None:
  """Runs the engine until it is stopped.

  Args:
    role: 'server' or 'client'.
    folder: the engine's folder, as `engine.lay_out` made it.
    name: the party's name.
    starter: process id of whom to end with.
  """
  watch.end_with(starter)
  os.environ[watch.PARENT] = str(os.getpid())
  module, startup = _MODULES[role]
  guards.install(role)
  options = ['secure_train=true', f'org={engine.ORGANIZATION}', 'config_folder=']
  if role == 'client':
    options += [f'uid={name}', f'heart_beat_interval={engine.HEARTBEAT}']
  sys.argv = [module, '-m', folder, '-s', startup, '--set', *options]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
