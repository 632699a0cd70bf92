"""Each machine gets its own secrets and nobody else's."""

import json
import re

import pytest
from cryptography import x509

from fedjax_mem.deploy import keys
from fedjax_mem.deploy.kit import Kit


@pytest.mark.parametrize(
  ('clients', 'more', 'match'),
  [
    ([], {}, 'clients must be a list of at least one name'),
    ('a,b', {}, 'clients must be a list of at least one name'),
    (['a', 'a/b'], {}, "clients must be names of .*, got 'a/b'"),
    (['../a'], {}, 'clients must be names'),
    (['a' * 41], {}, 'clients must be names of up to 40 letters'),
    (['a', 'A'], {}, 'distinct names, also in lower case'),
    (['a', 'Server'], {}, "other names than server, ca, driver, localhost, got 'Server'"),
    (['a', 'ca'], {}, 'other names than'),
    (['fl'], {'host': 'FL'}, "other names than .*, got 'fl'"),
    (['localhost'], {'host': 'fl.example.org'}, "other names than .*, got 'localhost'"),
    (['a'], {'host': 'a b'}, 'host must be a host name'),
    (['a'], {'port': 0}, 'port must be in 1'),
    (['a'], {'port': 9, 'admin_port': 9}, 'admin_port must differ from port'),
  ],
)
def test_what_no_kit_can_be_made_for_is_refused(tmp_path, clients, more, match):
  with pytest.raises(ValueError, match=match):
    keys.provision(tmp_path / 'kits', clients, **more)
  assert not (tmp_path / 'kits').exists()


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 'kept').touch()
  with pytest.raises(ValueError, match='DIR must be a new or empty folder'):
    keys.provision(tmp_path, ['a'])
  assert [p.name for p in tmp_path.iterdir()] == ['kept']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('made') / 'kits'
  lines = keys.provision(folder, ['b', 'a'], 'fl.example.org', port=18002, admin_port=18003)
  return folder, lines


@pytest.mark.slow
def test_the_kits_are_complete_and_for_their_owner_alone(made):
  folder, lines = made
  assert {p.name for p in folder.iterdir()} == {'ca', 'server', 'a', 'b'}
  for path in (folder, *folder.rglob('*')):
    assert path.stat().st_mode & 0o077 == 0, path
  for name in ('server', 'a', 'b'):
    kit = Kit.open(folder / name, 'server' if name == 'server' else 'client')
    kit.check()
    assert (kit.name, kit.clients, kit.host) == (name, ('b', 'a'), 'fl.example.org')
  assert len(lines) == 5 and all('\n' not in line for line in lines)
  assert 'for client b (id 0) alone' in lines[2] and 'for client a (id 1) alone' in lines[3]


@pytest.mark.slow
def test_no_private_key_is_in_two_places(made):
  """The engine's provisioning leaves all of them in one readable file."""
  found = {}
  for path in made[0].rglob('*'):
    if path.is_file():
      text = re.sub(r'\s|\\n', '', path.read_text())
      for key in re.findall('PRIVATEKEY-----(.*?)-----END', text):
        found.setdefault(key, []).append(path.relative_to(made[0]).as_posix())
  assert sorted(place for places in found.values() for place in places) == [
    *('a/sign.key', 'a/startup/client.key', 'b/sign.key', 'b/startup/client.key', 'ca/root.key'),
    *('server/driver/startup/client.key', 'server/sign.key', 'server/startup/server.key'),
  ]
  assert all(len(places) == 1 for places in found.values())


@pytest.mark.slow
def test_the_public_keys_are_those_of_the_private_ones(made):
  folder = made[0]
  public = [json.loads((folder / n / 'keys.json').read_text()) for n in ('server', 'a', 'b')]
  assert public[0] == public[1] == public[2]
  for name in ('server', 'a', 'b'):
    kit = Kit.open(folder / name, 'server' if name == 'server' else 'client')
    assert kit.sign.public_key().public_bytes_raw().hex() == public[0][name]


@pytest.mark.slow
def test_only_the_ca_may_sign_and_only_the_server_has_the_hosts_name(made):
  def loaded(name):
    return x509.load_pem_x509_certificate((made[0] / name).read_bytes())

  def hosts(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)

  root = loaded('ca/root.crt')
  assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
  assert hosts(loaded('server/startup/server.crt')) == ['fl.example.org', 'localhost']
  for name in ('a/startup', 'b/startup', 'server/driver/startup'):
    certificate = loaded(f'{name}/client.crt')
    certificate.verify_directly_issued_by(root)
    assert not {'fl.example.org', 'localhost'} & set(hosts(certificate))
    with pytest.raises(x509.ExtensionNotFound):
      certificate.extensions.get_extension_for_class(x509.BasicConstraints)


@pytest.mark.slow
def test_the_port_for_the_driver_is_open_on_the_servers_machine_alone(made):
  server = json.loads((made[0] / 'server' / 'startup' / 'fed_server.json').read_text())
  assert server['servers'][0]['admin_host'] == '127.0.0.1'
  driver = json.loads((made[0] / 'server' / 'driver' / 'startup' / 'fed_admin.json').read_text())
  assert (driver['admin']['host'], driver['admin']['port']) == ('localhost', 18003)
