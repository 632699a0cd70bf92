"""Certificates that do not fit are refused with one line, before the engine starts."""

import shutil
import socket
import ssl
import threading

import pytest
from reference import kits

from fedjax_mem.deploy import certificates
from fedjax_mem.deploy.kit import Kit


@pytest.fixture(scope='module')
def authority():
  return kits.Authority()


def refused(folder, match):
  with pytest.raises(ValueError, match=match) as caught:
    certificates.check(folder, 'client', 'a')
  assert '\n' not in str(caught.value)


def test_a_fitting_certificate_is_taken(authority, tmp_path):
  authority.issue(tmp_path, 'client', 'a')
  certificates.check(tmp_path, 'client', 'a')


def test_a_certificate_of_another_ca_is_refused(authority, tmp_path):
  kits.Authority().issue(tmp_path, 'client', 'a')
  authority.issue(tmp_path / 'ours', 'client', 'a')
  shutil.copy(tmp_path / 'ours' / 'rootCA.pem', tmp_path / 'rootCA.pem')
  refused(tmp_path, "must be signed by the kit's CA")


@pytest.mark.parametrize(
  ('days', 'match'), [((-9, -1), 'got one that expired at'), ((1, 9), "set this machine's clock")]
)
def test_a_certificate_is_only_good_between_its_dates(authority, tmp_path, days, match):
  authority.issue(tmp_path, 'client', 'a', days)
  refused(tmp_path, match)


def test_a_certificate_of_another_key_is_refused(authority, tmp_path):
  authority.issue(tmp_path, 'client', 'a')
  authority.issue(tmp_path / 'b', 'client', 'a')
  shutil.copy(tmp_path / 'b' / 'client.key', tmp_path / 'client.key')
  refused(tmp_path, 'must fit its private key client.key')


def test_a_certificate_of_another_name_is_refused(authority, tmp_path):
  authority.issue(tmp_path, 'client', 'b')
  refused(tmp_path, "must be of 'a', got one of 'b'")


@pytest.mark.parametrize('lost', ['client.crt', 'client.key', 'rootCA.pem'])
def test_a_missing_file_is_named(authority, tmp_path, lost):
  authority.issue(tmp_path, 'client', 'a')
  (tmp_path / lost).unlink()
  refused(tmp_path, lost)


def test_a_file_that_is_no_certificate_is_refused(authority, tmp_path):
  authority.issue(tmp_path, 'client', 'a')
  (tmp_path / 'client.crt').write_text('none')
  refused(tmp_path, 'must hold a certificate, its key and rootCA.pem')


class Listener:
  """A server of mutual TLS, or of none, that says hello to whom it admits."""

  def __init__(self, startup):
    self._socket = socket.create_server(('localhost', 0))
    self.port = self._socket.getsockname()[1]
    self._context = None
    if startup:
      self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
      self._context.load_cert_chain(startup / 'server.crt', startup / 'server.key')
      self._context.load_verify_locations(startup / 'rootCA.pem')
      self._context.verify_mode = ssl.CERT_REQUIRED
    threading.Thread(target=self._serve, daemon=True).start()

  def _serve(self):
    while True:
      plain, _ = self._socket.accept()
      with plain:
        try:
          if self._context:
            with self._context.wrap_socket(plain, server_side=True) as secure:
              secure.sendall(b'hello')
              secure.recv(64)
          else:
            plain.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
            plain.recv(64)
        except OSError:
          continue


def kit_for(folder, port, authority):
  kits.make(folder, port=port, authority=authority)
  return Kit.open(folder / 'a', 'client')


@pytest.fixture
def listener(authority, tmp_path):
  authority.issue(tmp_path / 'listener', 'server', 'localhost')
  return Listener(tmp_path / 'listener')


def test_the_server_takes_a_client_of_its_ca(listener, authority, tmp_path):
  certificates.probe(kit_for(tmp_path, listener.port, authority), 5)


def test_a_server_of_another_ca_is_not_trusted(listener, tmp_path):
  with pytest.raises(ValueError, match="must have a certificate of the kit's CA for 'localhost'"):
    certificates.probe(kit_for(tmp_path, listener.port, kits.Authority()), 5)


def test_a_client_whom_the_server_refuses_is_told_so(listener, authority, tmp_path):
  kit = kit_for(tmp_path, listener.port, kits.Authority())
  (tmp_path / 'ours').mkdir()
  authority.issue(tmp_path / 'ours', 'client', 'a')
  shutil.copy(tmp_path / 'ours' / 'rootCA.pem', kit.startup / 'rootCA.pem')
  with pytest.raises(ValueError, match='must take the certificate of this kit over TLS') as caught:
    certificates.probe(kit, 5)
  assert '\n' not in str(caught.value)


def test_a_server_without_tls_is_refused(authority, tmp_path):
  kit = kit_for(tmp_path, Listener(None).port, authority)
  with pytest.raises(ValueError, match='must take the certificate of this kit over TLS'):
    certificates.probe(kit, 5)


def test_a_port_where_nobody_listens_is_waited_for_so_long(authority, tmp_path):
  with socket.create_server(('localhost', 0)) as taken:
    port = taken.getsockname()[1]
  with pytest.raises(ConnectionError, match=f'nobody listens at localhost:{port}'):
    certificates.probe(kit_for(tmp_path, port, authority), 0.3)
