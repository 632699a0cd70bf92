"""Certificates and keys of a deployment: one folder (kit) for each machine, and the CA apart."""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem._version import __version__
from fedjax_mem.deploy import engine

_RESERVED = ('server', 'ca', 'driver', 'localhost')
_CLIENT_FILES = ('fed_client.json', 'client.crt', 'client.key', 'rootCA.pem')
_SERVER_FILES = ('fed_server.json', 'server.crt', 'server.key', 'rootCA.pem')
_DRIVER_FILES = ('fed_admin.json', 'client.crt', 'client.key', 'rootCA.pem')


def provision(
  folder: str | os.PathLike[str],
  clients: Sequence[str],
  host: str = 'localhost',
  *,
  port: int = 8002,
  admin_port: int = 8003,
) -> list[str]:
  """Makes a certificate authority (CA), a kit for the server and one for each client.

  Args:
    folder: folder to make: `ca/`, `server/` and one folder for each client, all 0700.
    clients: names of the clients; their order is that of the client ids, 0 … N - 1.
    host: name or address by which clients reach the server; the certificate names it.
    port: TCP port of the server for clients.
    admin_port: TCP port of the server for its own driver.

  Returns:
    Lines that say what to hand to whom.

  Raises:
    ValueError: a name, host or port is not valid, the folder is not empty, or NVIDIA FLARE is not
      installed.
  """
  names = _checked(clients, host, port, admin_port)
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(
      f'DIR must be a new or empty folder, so that no key is overwritten, got {str(folder)!r}.'
    )
  engine.need()
  before = os.umask(0o077)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.making-') as made:
      source = _certificates(pathlib.Path(made), names, host, port, admin_port)
      _keep_authority(source.parent / 'state' / 'cert.json', folder / 'ca')
      _take(source / host / 'startup', folder / 'server' / 'startup', _SERVER_FILES)
      driver = folder / 'server' / 'driver'
      _take(source / engine.DRIVER / 'startup', driver / 'startup', _DRIVER_FILES)
      for name in names:
        _take(source / name / 'startup', folder / name / 'startup', _CLIENT_FILES)
    _describe(folder, names, host, port, admin_port)
  finally:
    os.umask(before)
  return _handing(folder, names, host, port, admin_port)


def _checked(clients: Sequence[str], host: str, port: int, admin_port: int) -> tuple[str, ...]:
  if isinstance(clients, str) or not clients:
    raise ValueError(f'clients must be a list of at least one name, got {clients!r}.')
  for name in clients:
    if not isinstance(name, str) or not re.fullmatch('[A-Za-z0-9][A-Za-z0-9_-]{0,39}', name):
      raise ValueError(
        f'clients must be names of up to 40 letters, digits, "-" and "_", got {name!r}.'
      )
    # A certificate for the server's own name would let its holder pose as the server.
    if name.lower() in (*_RESERVED, host.lower()):
      taken = ', '.join(dict.fromkeys((*_RESERVED, host)))
      raise ValueError(f'clients must have other names than {taken}, got {name!r}.')
  if len({name.lower() for name in clients}) < len(clients):
    raise ValueError(f'clients must have distinct names, also in lower case, got {list(clients)}.')
  label = '[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?'
  if len(host) > 63 or not re.fullmatch(rf'({label}\.)*{label}', host):
    raise ValueError(f'host must be a host name or IPv4 address of up to 63 letters, got {host!r}.')
  for name, value in (('port', port), ('admin_port', admin_port)):
    if not 1 <= value <= 65535:
      raise ValueError(f'{name} must be in 1 … 65535, got {value!r}.')
  if port == admin_port:
    raise ValueError(f'admin_port must differ from port, got {admin_port!r}.')
  return tuple(clients)


def _certificates(
  folder: pathlib.Path, names: Sequence[str], host: str, port: int, admin_port: int
) -> pathlib.Path:
  """Runs the engine's provisioning; returns the folder of its kits."""
  from nvflare.lighter.constants import CtxKey
  from nvflare.lighter.entity import Project
  from nvflare.lighter.impl.cert import CertBuilder
  from nvflare.lighter.impl.static_file import StaticFileBuilder
  from nvflare.lighter.impl.workspace import WorkspaceBuilder
  from nvflare.lighter.provisioner import Provisioner

  project = Project(engine.PROJECT, 'fedjax_mem', props={'api_version': 3})
  ports = {'fed_learn_port': port, 'admin_port': admin_port}
  project.set_server(host, engine.ORGANIZATION, ports | {'host_names': ['localhost']})
  for name in names:
    project.add_client(name, engine.ORGANIZATION, {})
  project.add_admin(engine.DRIVER, engine.ORGANIZATION, {'role': engine.ROLE})
  builders = [
    WorkspaceBuilder(),
    StaticFileBuilder(scheme='grpc', require_signed_jobs=True),
    CertBuilder(),
  ]
  with _quiet() as said:
    ctx = Provisioner(str(folder), builders).provision(project)
  if ctx.get(CtxKey.BUILD_ERROR):
    raise RuntimeError(f'certificates could not be made: {" ".join(said.getvalue().split())}')
  kits = folder / engine.PROJECT / 'prod_00'
  _admin_on_loopback(kits / host / 'startup', kits / engine.DRIVER / 'startup')
  return kits


def _admin_on_loopback(server: pathlib.Path, driver: pathlib.Path) -> None:
  """Has the server's port for its driver be open on its own machine alone."""
  settings = json.loads((server / 'fed_server.json').read_text())
  settings['servers'][0]['admin_host'] = '127.0.0.1'
  engine.write_json(server / 'fed_server.json', settings)
  settings = json.loads((driver / 'fed_admin.json').read_text())
  settings['admin']['host'] = 'localhost'
  engine.write_json(driver / 'fed_admin.json', settings)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    yield said


def _keep_authority(state: pathlib.Path, folder: pathlib.Path) -> None:
  """Keeps the CA's own key and certificate; the state also holds the keys of all others."""
  content = json.loads(state.read_text())
  folder.mkdir(mode=0o700)
  _write(folder / 'root.key', content['root_pri_key'].encode())
  _write(folder / 'root.crt', content['root_cert'].encode())


def _take(source: pathlib.Path, target: pathlib.Path, files: Sequence[str]) -> None:
  target.mkdir(parents=True)
  for name in files:
    _write(target / name, (source / name).read_bytes())


def _write(path: pathlib.Path, content: bytes) -> None:
  descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  with os.fdopen(descriptor, 'wb') as file:
    file.write(content)


def _describe(
  folder: pathlib.Path, names: Sequence[str], host: str, port: int, admin_port: int
) -> None:
  """Writes into each kit who it is, and the Ed25519 keys."""
  parties = ('server', *names)
  signers = {name: Ed25519PrivateKey.generate() for name in parties}
  public = {name: signer.public_key().public_bytes_raw().hex() for name, signer in signers.items()}
  for name in parties:
    facts = {
      'role': 'server' if name == 'server' else 'client',
      'name': name,
      'clients': list(names),
      'host': host,
      'port': port,
      'admin_port': admin_port,
      'version': __version__,
    }
    engine.write_json(folder / name / 'kit.json', facts)
    engine.write_json(folder / name / 'keys.json', public)
    pem = signers[name].private_bytes(
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.NoEncryption(),
    )
    _write(folder / name / 'sign.key', pem)


def _handing(
  folder: pathlib.Path, names: Sequence[str], host: str, port: int, admin_port: int
) -> list[str]:
  lines = [f'{folder / "ca"}: the key that signs certificates; keep it offline, give it to nobody']
  lines.append(
    f'{folder / "server"}: for the server, {host}; clients must reach its port {port} '
    f'({admin_port} is for itself alone)'
  )
  lines += [f'{folder / name}: for client {name} (id {i}) alone' for i, name in enumerate(names)]
  lines.append('each kit holds private keys: hand it over by a safe way, then delete it here')
  return lines
