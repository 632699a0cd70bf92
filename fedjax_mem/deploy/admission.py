"""Which jobs a machine lets in: those of our form, signed by the server's driver.

The engine by itself admits any job that a certificate of the CA has signed, also a client's.
"""

import json
import os
import pathlib
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.apis.app_validation import AppValidator

from fedjax_mem.deploy import engine, flare, jobs

_SIGNATURES = ('.__nvfl_sig.json', '.__nvfl_submitter.crt')
_FILES = ('config_fed_server.json', 'config_fed_client.json', flare.PAYLOAD)


class OursAlone(AppValidator):
  """Refuses each job that is not exactly what `jobs.make` makes, signed by the driver."""

  def __init__(self, role: str):
    super().__init__()
    self._role = role

  def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
    """Returns why the engine must not run a job, '' if it may, and no facts about it."""
    try:
      refuse(pathlib.Path(app_folder))
    except Exception as error:  # whatever is wrong with a job, it is not run
      line = ' '.join(str(error).split())
      if self._role == 'client':
        flare.tell(flare.place(), 'refused', line)
      return line, {}
    return '', {}


def refuse(app: pathlib.Path) -> None:
  """Raises `ValueError` if the folder of a job's app is not of our form.

  Its signatures are the engine's to verify; this looks at who the signer is.
  """
  found = {
    os.path.relpath(os.path.join(root, name), app)
    for root, folders, files in os.walk(app)
    for name in (
      *files,
      *(folder for folder in folders if (pathlib.Path(root) / folder).is_symlink()),
    )
  }
  expected = {os.path.join('config', name) for name in (*_FILES, *_SIGNATURES)} | set(_SIGNATURES)
  if unsigned := {name for name in expected - found if os.path.basename(name) in _SIGNATURES}:
    raise ValueError(f'a job must be signed by the driver of the server, got no {min(unsigned)}.')
  if found != expected:
    odd = ', '.join(sorted(found ^ expected))
    raise ValueError(f'a job must hold the files of `fedjax-mem deploy` alone, got {odd}.')
  for folder in (app, app / 'config'):
    only_driver(x509.load_pem_x509_certificate((folder / _SIGNATURES[1]).read_bytes()))
  server, client = (json.loads((app / 'config' / name).read_text()) for name in _FILES[:2])
  interval = server.get('server', {}).get('task_request_interval')
  if not isinstance(interval, float) or (server, client) != jobs.configs(interval):
    raise ValueError(
      f'a job must name {" and ".join(engine.CLASSES)} alone, with the settings of this version '
      'of fedjax_mem; install the same version on all machines.'
    )


def only_driver(certificate: x509.Certificate) -> None:
  """Raises `ValueError` if a certificate is not that of the server's driver."""
  subject = certificate.subject
  names = [x.value for x in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
  roles = [x.value for x in subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)]
  if (names, roles) != ([engine.DRIVER], [engine.ROLE]):
    raise ValueError(f'only {engine.DRIVER} may submit jobs and ask the server, got {names}.')
