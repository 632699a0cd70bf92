"""Checks of a kit's certificates, by themselves and against the server that listens."""

import datetime
import pathlib
import socket
import ssl
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
  from fedjax_mem.deploy.kit import Kit

TAKE_AFRESH = 'take the kit afresh from whoever ran `fedjax-mem deploy keys`.'
_RENEW = 'have new kits made by `fedjax-mem deploy keys`.'
_HELLO = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # no settings


def private(path: pathlib.Path) -> None:
  """Raises `ValueError` if a private key is missing, or readable by others than its owner."""
  try:
    mode = path.stat().st_mode & 0o777
  except OSError as error:
    raise ValueError(f'{path} must be there, got {error.strerror}; {TAKE_AFRESH}') from error
  if mode & 0o077:
    raise ValueError(f'{path} must be readable by its owner alone, got mode {mode:o}: chmod 600.')


def check(folder: pathlib.Path, own: str, subject: str) -> None:
  """Checks a party's certificate: its key, the CA that signed it, its name and its dates.

  Args:
    folder: folder of `{own}.crt`, `{own}.key` and the CA's certificate `rootCA.pem`.
    own: 'server' or 'client'.
    subject: the name that the certificate must have.

  Raises:
    ValueError: one of them does not fit.
  """
  private(folder / f'{own}.key')
  try:
    certificate = x509.load_pem_x509_certificate((folder / f'{own}.crt').read_bytes())
    root = x509.load_pem_x509_certificate((folder / 'rootCA.pem').read_bytes())
    key = serialization.load_pem_private_key((folder / f'{own}.key').read_bytes(), None)
  except (OSError, ValueError, TypeError) as error:
    words = ' '.join(str(error).split())
    raise ValueError(
      f'{folder} must hold a certificate, its key and rootCA.pem, got {words}; {TAKE_AFRESH}'
    ) from error
  what = f'certificate {folder / f"{own}.crt"}'
  if _raw(key.public_key()) != _raw(certificate.public_key()):
    raise ValueError(f'{what} must fit its private key {own}.key; {TAKE_AFRESH}')
  try:
    certificate.verify_directly_issued_by(root)
  except (InvalidSignature, ValueError, TypeError):
    raise ValueError(f"{what} must be signed by the kit's CA, rootCA.pem; {TAKE_AFRESH}") from None
  names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
  if [name.value for name in names] != [subject]:
    got = ', '.join(str(name.value) for name in names)
    raise ValueError(f'{what} must be of {subject!r}, got one of {got!r}; {TAKE_AFRESH}')
  _valid_now(what, certificate)
  _valid_now(f'certificate {folder / "rootCA.pem"} of the CA', root)


def _raw(key: object) -> bytes:
  return key.public_bytes(  # type: ignore[attr-defined, no-any-return]
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
  )


def _valid_now(what: str, certificate: x509.Certificate) -> None:
  now = datetime.datetime.now(datetime.UTC)
  first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
  if now > last:
    raise ValueError(f'{what} must be valid now, got one that expired at {last}; {_RENEW}')
  if now < first:
    raise ValueError(
      f"{what} must be valid now, got one that is valid from {first}; set this machine's clock."
    )


def probe(kit: 'Kit', timeout: float = 10.0) -> None:
  """Tells by one TLS handshake whether a client's server is there, and takes its certificate.

  Args:
    kit: a client's kit.
    timeout: seconds for which a server that does not listen yet is waited for.

  Raises:
    ValueError: the server is not of the kit's CA or name, refuses the kit's certificate, or does
      not speak TLS. One line.
    ConnectionError: nobody listens until the time is over.
  """
  where = f'{kit.host}:{kit.port}'
  context = ssl.create_default_context(cafile=str(kit.startup / 'rootCA.pem'))
  context.load_cert_chain(str(kit.startup / 'client.crt'), str(kit.startup / 'client.key'))
  context.set_alpn_protocols(['h2'])
  deadline = time.monotonic() + timeout
  with _reached(kit, where, deadline) as plain:
    plain.settimeout(max(5.0, deadline - time.monotonic()))
    try:
      secure = context.wrap_socket(plain, server_hostname=kit.host)
    except ssl.SSLCertVerificationError as error:
      raise ValueError(
        f"server {where} must have a certificate of the kit's CA for {kit.host!r}, got "
        f'{error.verify_message}; is it another deployment, or are its keys new? {TAKE_AFRESH}'
      ) from error
    except (ssl.SSLError, OSError) as error:
      raise ValueError(_refusal(where, error)) from error
    # With TLS 1.3 a server refuses a certificate only after the client's handshake.
    with secure:
      try:
        secure.sendall(_HELLO)
        answer = secure.recv(1)
      except (ssl.SSLError, OSError) as error:
        raise ValueError(_refusal(where, error)) from error
      if not answer:
        raise ValueError(_refusal(where, 'it hung up'))


def _reached(kit: 'Kit', where: str, deadline: float) -> socket.socket:
  while True:
    try:
      return socket.create_connection((kit.host, kit.port), max(1.0, deadline - time.monotonic()))
    except OSError as error:
      if time.monotonic() >= deadline:
        raise ConnectionError(
          f'nobody listens at {where} ({error}): start the server, or have its port opened.'
        ) from error
    time.sleep(0.2)


def _refusal(where: str, why: object) -> str:
  reason = getattr(why, 'reason', None) or ' '.join(str(why).split())
  return (
    f'server {where} must take the certificate of this kit over TLS, got {reason}: it is of '
    f'another CA, or not a server of `fedjax-mem deploy`; {TAKE_AFRESH}'
  )
