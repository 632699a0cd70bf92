"""A kit is read, and checked before anything is started with it."""

import json
import shutil

import pytest
from reference import kits

from fedjax_mem.deploy.kit import Kit


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('kits')
  return folder, kits.make(folder)


@pytest.fixture
def kit(made, tmp_path):
  """Returns a function that opens a copy of a party's kit."""

  def opened(name):
    copy = tmp_path / name
    if not copy.exists():
      shutil.copytree(made[0] / name, copy)
    return Kit.open(copy, 'server' if name == 'server' else 'client')

  return opened


def test_a_kit_says_who_it_is_and_whose_keys_it_knows(kit):
  a, server = kit('a'), kit('server')
  assert (a.role, a.name, a.clients, a.host) == ('client', 'a', ('a', 'b'), 'localhost')
  assert (a.port, a.admin_port) == (18002, 18003)
  assert set(a.public) == {'server', 'a', 'b'} and a.public == server.public
  assert a.sign.public_key().public_bytes_raw() == server.public['a']
  assert a.work == a.path / 'work'
  a.check()
  server.check()


@pytest.mark.parametrize('role', ['server', 'client'])
def test_a_kit_of_the_other_role_is_refused(made, role):
  name = 'a' if role == 'server' else 'server'
  with pytest.raises(ValueError, match=f"kit must be that of a {role}, got the kit of .* '{name}'"):
    Kit.open(made[0] / name, role)


@pytest.mark.parametrize('lost', ['kit.json', 'keys.json', 'sign.key'])
def test_an_incomplete_kit_is_refused_with_what_is_missing(kit, lost):
  path = kit('a').path
  (path / lost).unlink()
  with pytest.raises(ValueError, match=lost):
    Kit.open(path, 'client')


def test_a_folder_that_is_no_kit_is_refused(tmp_path):
  with pytest.raises(ValueError, match='that `fedjax-mem deploy keys` made'):
    Kit.open(tmp_path, 'client')


def test_a_kit_without_the_key_of_a_party_is_refused(kit):
  path = kit('a').path
  (path / 'keys.json').write_text(json.dumps({'server': '00' * 32, 'a': '00' * 32}))
  with pytest.raises(ValueError, match='one key for each party'):
    Kit.open(path, 'client')


@pytest.mark.parametrize('key', ['sign.key', 'startup/client.key'])
def test_a_private_key_that_others_may_read_is_refused(kit, key):
  a = kit('a')
  (a.path / key).chmod(0o640)
  with pytest.raises(ValueError, match='readable by its owner alone, got mode 640: chmod 600'):
    a.check()


def test_a_signing_key_of_another_is_refused(kit):
  a, b = kit('a'), kit('b')
  shutil.copy(b.path / 'sign.key', a.path / 'sign.key')
  with pytest.raises(ValueError, match=r'sign.key of .* must fit keys.json'):
    Kit.open(a.path, 'client').check()


def test_the_certificate_of_another_client_is_refused(kit):
  a, b = kit('a'), kit('b')
  shutil.rmtree(a.path / 'startup')
  shutil.copytree(b.path / 'startup', a.path / 'startup')
  with pytest.raises(ValueError, match="must be of 'a', got one of 'b'"):
    a.check()


def test_the_drivers_certificate_is_checked_too(kit, made):
  server = kit('server')
  made[1].issue(server.path / 'driver' / 'startup', 'client', 'a')
  with pytest.raises(ValueError, match=r"must be of 'driver@fedjax-mem.org', got one of 'a'"):
    server.check()
