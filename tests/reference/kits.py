"""Kits as `deploy.keys` makes them, by a CA of our own, without the engine."""

import datetime
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from fedjax_mem import __version__
from fedjax_mem.deploy import engine

DAY = datetime.timedelta(days=1)


class Authority:
  """A CA."""

  def __init__(self, certificate=None, key=None):
    self.key = key or ec.generate_private_key(ec.SECP256R1())
    self.certificate = certificate or self._issue(
      'fedjax_mem', self.key, (-1, 9), x509.BasicConstraints(ca=True, path_length=None)
    )

  @classmethod
  def load(cls, folder):
    """Returns the CA whose key is in `folder`."""
    certificate = x509.load_pem_x509_certificate((folder / 'root.crt').read_bytes())
    key = serialization.load_pem_private_key((folder / 'root.key').read_bytes(), None)
    return cls(certificate, key)

  def _issue(self, subject, key, days, constraints=None, role=None):
    now = datetime.datetime.now(datetime.UTC)
    name = [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
    if role:
      name.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role))
    issuer = [x509.NameAttribute(NameOID.COMMON_NAME, 'fedjax_mem')]
    built = (
      x509.CertificateBuilder()
      .subject_name(x509.Name(name))
      .issuer_name(x509.Name(issuer))
      .public_key(key.public_key())
      .serial_number(x509.random_serial_number())
      .not_valid_before(now + days[0] * DAY)
      .not_valid_after(now + days[1] * DAY)
      .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    )
    if constraints:
      built = built.add_extension(constraints, critical=True)
    return built.sign(self.key, hashes.SHA256())

  def issue(self, folder, own, subject, days=(-1, 9), role=None):
    """Writes `own`.crt and `own`.key for `subject`, valid from and until so many days from now."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self._issue(subject, key, days, role=role)
    (folder / f'{own}.crt').write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret(folder / f'{own}.key', key)
    pem = self.certificate.public_bytes(serialization.Encoding.PEM)
    (folder / 'rootCA.pem').write_bytes(pem)


def secret(path, key):
  """Writes a private key, readable by its owner alone."""
  pem = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  )
  path.touch(0o600)
  path.write_bytes(pem)


def make(folder, clients=('a', 'b'), port=18002, authority=None):
  """Makes a kit for the server and for each client; returns the CA."""
  authority = authority or Authority()
  signers = {name: Ed25519PrivateKey.generate() for name in ('server', *clients)}
  for name, signer in signers.items():
    role = 'server' if name == 'server' else 'client'
    authority.issue(folder / name / 'startup', role, 'localhost' if role == 'server' else name)
    facts = {
      'role': role,
      'name': name,
      'clients': list(clients),
      'host': 'localhost',
      'port': port,
      'admin_port': port + 1,
      'version': __version__,
    }
    public = {n: s.public_key().public_bytes_raw().hex() for n, s in signers.items()}
    (folder / name / 'kit.json').write_text(json.dumps(facts))
    (folder / name / 'keys.json').write_text(json.dumps(public))
    secret(folder / name / 'sign.key', signer)
  driver = folder / 'server' / 'driver' / 'startup'
  authority.issue(driver, 'client', engine.DRIVER, role=engine.ROLE)
  return authority
