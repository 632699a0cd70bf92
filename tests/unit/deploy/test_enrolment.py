"""Revoked clients are a file of the server's kit."""

import pytest
from reference import kits

from fedjax_mem.deploy import enrolment
from fedjax_mem.deploy.kit import Kit


@pytest.fixture
def kit(tmp_path):
  kits.make(tmp_path)
  return Kit.open(tmp_path / 'server', 'server')


def test_nobody_is_revoked_at_first_and_each_once(kit):
  assert enrolment.revoked(kit) == {}
  enrolment.revoke(kit, 'b')
  first = enrolment.revoked(kit)
  enrolment.revoke(kit, 'b')
  assert enrolment.revoked(kit) == first and set(first) == {'b'}


def test_who_is_no_client_is_refused(kit):
  with pytest.raises(ValueError, match="NAME must be one of the clients a, b, got 'z'"):
    enrolment.revoke(kit, 'z')


def test_a_client_may_not_revoke(kit):
  with pytest.raises(ValueError, match="must be that of the server, got the kit of client 'a'"):
    enrolment.revoke(Kit.open(kit.path.parent / 'a', 'client'), 'b')


@pytest.mark.parametrize('text', ['{', '[]', '{"a": '])
def test_a_file_that_cannot_be_read_lets_nobody_in(kit, text):
  (kit.path / 'revoked.json').write_text(text)
  with pytest.raises(ValueError, match=r'revoked.json must be a JSON object'):
    enrolment.revoked(kit)
