"""What the engine (NVIDIA FLARE) is told on a machine: names, ports, stores, who may do what.

A kit holds certificates and addresses only. All that depends on the machine is written here, into
the work folder, each time that the engine starts: kits are copied to other machines.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Collection, Sequence
from typing import Any

PROJECT = 'fedjax_mem'
ORGANIZATION = 'fedjax_mem'
DRIVER = 'driver@fedjax-mem.org'  # who submits jobs, from the server's machine
ROLE = 'project_admin'
CLASSES = ('fedjax_mem.deploy.flare.Rounds', 'fedjax_mem.deploy.flare.Answers')
VALIDATOR = 'fedjax_mem.deploy.admission.OursAlone'
# The engine puts it into every client's job by itself; without it every job fails.
_ENGINE_CLASSES = ('nvflare.app_common.logging.job_log_streamer.JobLogStreamer',)
SILENCE = 10.0  # seconds without a sign of life after which a client counts as dead
START = 60.0  # seconds that a client has for its first sign of life in a job
HEARTBEAT = 2.0  # seconds between two signs of life
_APP = 'nvflare.app_common'


def need() -> None:
  """Raises `ValueError`, with the remedy, if NVIDIA FLARE is not installed."""
  import importlib.util

  if importlib.util.find_spec('nvflare') is None:
    raise ValueError("deploy needs the extra: pip install 'fedjax_mem[deploy]'")


def write_json(path: pathlib.Path, content: Any, mode: int = 0o600) -> None:
  """Writes JSON atomically: a reader finds the old file or the whole new one."""
  beside = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
  with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
    json.dump(content, file, indent=2)
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)


def lay_out(
  startup: pathlib.Path,
  folder: pathlib.Path,
  role: str,
  clients: Sequence[str],
  revoked: Collection[str] = (),
) -> None:
  """Makes the engine's folder: the kit's certificates by a link, and settings of this machine.

  Args:
    startup: the kit's folder of certificates and addresses.
    folder: the folder to make. What another start left in it is removed: the engine would run its
      jobs again.
    role: 'server' or 'client'.
    clients: names of all clients.
    revoked: names of the clients that the server must not admit.
  """
  folder = folder.resolve()
  if folder.exists():
    shutil.rmtree(folder)
  folder.mkdir(parents=True, mode=0o700)
  (folder / 'local').mkdir(mode=0o700)
  link_startup(startup, folder / 'startup')
  if role == 'server':
    write_json(folder / 'disabled_clients.json', {'disabled_clients': sorted(revoked)})
  resources = _server(folder, clients) if role == 'server' else _client()
  resources['app_validator'] = {'path': VALIDATOR, 'args': {'role': role}}
  write_json(folder / 'local' / 'resources.json', resources)
  write_json(folder / 'local' / 'authorization.json', _RIGHTS)
  write_json(folder / 'local' / 'log_config.json', _LOGGING)


def link_startup(source: pathlib.Path, target: pathlib.Path) -> None:
  """Makes the engine's folder of certificates: links to keys, which stay in the kit, and copies.

  The engine looks for settings in real folders and real files alone.
  """
  target.mkdir(parents=True, exist_ok=True, mode=0o700)
  for file in source.resolve().iterdir():
    here = target / file.name
    here.unlink(missing_ok=True)
    if file.suffix == '.json':
      write_json(here, json.loads(file.read_text()))
    else:
      here.symlink_to(file)


def _common() -> dict[str, Any]:
  return {
    'format_version': 2,
    'class_list_enforcement_mode': 'enforce',
    'class_allow_list': [*CLASSES, *_ENGINE_CLASSES],
  }


def _server(folder: pathlib.Path, clients: Sequence[str]) -> dict[str, Any]:
  storage = f'{_APP}.storages.filesystem_storage.FilesystemStorage'
  return _common() | {
    'servers': [
      {
        'admin_storage': str(folder / 'transfer'),
        'max_num_clients': max(100, len(clients)),
        'heart_beat_timeout': SILENCE,
        'download_job_url': 'http://localhost/',
        'admin_timeout': 10.0,
      }
    ],
    'snapshot_persistor': {
      'path': f'{_APP}.state_persistors.storage_state_persistor.StorageStatePersistor',
      'args': {
        'uri_root': '/',
        'storage': {
          'path': storage,
          'args': {'root_dir': str(folder / 'snapshots'), 'uri_root': '/'},
        },
      },
    },
    'components': [
      {
        'id': 'job_scheduler',
        'path': f'{_APP}.job_schedulers.job_scheduler.DefaultJobScheduler',
        'args': {'max_jobs': 1, 'min_schedule_interval': 0.5, 'max_schedule_interval': 2.0},
      },
      {
        'id': 'job_manager',
        'path': 'nvflare.apis.impl.job_def_manager.SimpleJobDefManager',
        'args': {'uri_root': str(folder / 'jobs'), 'job_store_id': 'job_store'},
      },
      {'id': 'job_store', 'path': storage},
      {
        'id': 'process_launcher',
        'path': f'{_APP}.job_launcher.server_process_launcher.ServerProcessJobLauncher',
        'args': {},
      },
    ],
  }


def _client() -> dict[str, Any]:
  resources = f'{_APP}.resource_managers.gpu_resource_manager.GPUResourceManager'
  consumer = f'{_APP}.resource_consumers.gpu_resource_consumer.GPUResourceConsumer'
  launcher = f'{_APP}.job_launcher.client_process_launcher.ClientProcessJobLauncher'
  return _common() | {
    'allow_log_streaming': False,  # a client's log stays with the client
    'client': {'retry_timeout': 30, 'compression': 'Gzip'},
    'components': [
      {
        'id': 'resource_manager',
        'path': resources,
        'args': {'num_of_gpus': 0, 'mem_per_gpu_in_GiB': 0, 'expiration_period': 300},
      },
      {'id': 'resource_consumer', 'path': consumer, 'args': {}},
      {'id': 'process_launcher', 'path': launcher, 'args': {}},
    ],
  }


# The driver may do what it needs, but bring no code of its own; nobody else may do anything.
_RIGHTS = {
  'format_version': '1.0',
  'permissions': {
    ROLE: {
      'submit_job': 'any',
      'clone_job': 'none',
      'manage_job': 'any',
      'download_job': 'none',
      'view': 'any',
      'operate': 'any',
      'shell_commands': 'none',
      'byoc': 'none',
      'server-predeployed-flwr': 'none',
    }
  },
}

_CHATTY = (
  'nvflare.private.fed.client.client_runner',
  'nvflare.private.fed.client.communicator',
  'nvflare.private.fed.client.fed_client_base',
  'nvflare.private.fed.server.server_commands',
  'nvflare.private.fed.server.server_runner',
  'nvflare.apis.impl.wf_comm_server',
)
_LOGGING = {
  'version': 1,
  'disable_existing_loggers': False,
  'formatters': {
    'baseFormatter': {
      '()': 'nvflare.fuel.utils.log_utils.BaseFormatter',
      'fmt': '%(asctime)s - %(name)s - %(levelname)s - %(fl_ctx)s - %(message)s',
    }
  },
  'filters': {'seldom': {'()': 'fedjax_mem.deploy.logs.Seldom'}},
  'handlers': {
    'consoleHandler': {
      'class': 'logging.StreamHandler',
      'filters': ['seldom'],
      'level': 'DEBUG',
      'formatter': 'baseFormatter',
      'stream': 'ext://sys.stdout',
    }
  },
  'loggers': {
    'root': {'level': 'INFO', 'handlers': ['consoleHandler']},
    # Several lines for each message.
    **{name: {'level': 'WARNING'} for name in _CHATTY},
  },
}
