"""What the server's machine tells of a deployment; here it does not run."""

import json

import pytest
from reference import kits

from fedjax_mem.deploy import standing
from fedjax_mem.deploy.kit import Kit


@pytest.fixture
def kit(tmp_path):
  kits.make(tmp_path)
  return Kit.open(tmp_path / 'server', 'server')


def test_a_server_that_does_not_run_and_a_revoked_client_are_shown(kit):
  assert standing.revoke(kit, 'b').startswith(
    'b is revoked from the next round on; the server does'
  )
  first, a, b = standing.status(kit)
  assert first == 'server: not running, localhost:18002'
  assert a == 'client 0 a: not known'
  assert b.startswith('client 1 b: revoked at 20')


def test_a_client_may_not_ask(kit):
  with pytest.raises(ValueError, match="must be that of the server, got the kit of client 'a'"):
    standing.status(Kit.open(kit.path.parent / 'a', 'client'))


@pytest.mark.parametrize(
  ('records', 'shown'),
  [([], 'none yet'), ([{'round': 1}, {'round': 2}], '2'), (None, 'none yet')],
)
def test_the_round_is_that_of_the_last_record(tmp_path, records, shown):
  if records is not None:
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (tmp_path / 'metrics.jsonl').write_text(lines)
  assert standing._last_round({'run': str(tmp_path)}) == shown
  assert standing._last_round({}) == 'none yet'
