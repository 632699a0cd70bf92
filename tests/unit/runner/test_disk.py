"""A full disk: recognised in errors of the system and in the words of libraries, with a remedy."""

import errno

import pytest

from fedjax_mem.core import State
from fedjax_mem.runner import disk
from fedjax_mem.runner.checkpoint import CheckpointError, Checkpoints
from fedjax_mem.runner.folder import create

# What Orbax said on a full tmpfs, shortened.
ORBAX = (
  'RESOURCE_EXHAUSTED: Error writing "params/w/0" in OCDBT database: Failed to write 1249535 bytes '
  "to file 14: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
  ('error', 'said'),
  [
    (OSError(errno.ENOSPC, 'No space left on device'), 'No space left on device'),
    (OSError(errno.EDQUOT, 'x'), 'Disk quota exceeded'),
    (ValueError(ORBAX), 'No space left on device'),
    (OSError(errno.EACCES, 'Permission denied'), None),
    (ValueError('x'), None),
  ],
)
def test_a_full_disk_is_recognised(error, said):
  assert disk.reason(error) == said


def test_under_the_lock_of_a_run_it_is_said_how_to_go_on(make, tmp_path):
  folder = create(make(), tmp_path)
  words = f'the disk of {folder.path} is full .*free some space, then go on with `fedjax-mem resume'
  with (
    pytest.raises(disk.DiskFull, match=words) as error,
    folder.locked(),
    open('/dev/full', 'w') as file,
  ):
    file.write('x')
  assert isinstance(error.value, OSError) and '\n' not in str(error.value)
  with pytest.raises(PermissionError), folder.locked():  # any other error stays what it is
    raise PermissionError(errno.EACCES, 'Permission denied')


def test_a_checkpoint_that_has_no_room_says_so_and_not_what_orbax_says(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path / 'checkpoints')

  def full(*args, **options):
    raise ValueError(ORBAX)

  monkeypatch.setattr(checkpoints._manager, 'save', full)
  with pytest.raises(CheckpointError) as error:
    checkpoints.save(State(3, {}, {}, {}))
  assert str(error.value) == (
    f'the checkpoint of round 3 cannot be written: the disk of {tmp_path / "checkpoints"} is full '
    '(No space left on device); free some space, then resume the run'
  )
