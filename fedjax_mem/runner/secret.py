"""The secret root of a run under a claim of privacy, in a file that only its owner can read.

Who has it can subtract the noise and draw the cohorts again. So it is in this file alone: in no
configuration, manifest, record, checkpoint, report or message. Without it a run cannot be resumed,
since other noise would be a second release of the same rounds. Beside the root is the id of its
run, which is no secret: the root of another run is refused.
"""

import os
import pathlib

import numpy as np

FILE = 'noise.key'
_WORDS, _DIGITS = 2, 16  # uint32 [2] are 16 hexadecimal digits


def write(folder: pathlib.Path, root: np.ndarray, run_id: str) -> None:
  """Writes the root, uint32 [2], as a new file that is on the disk on return.

  Args:
    folder: folder of the run.
    root: the secret root.
    run_id: id of the run, as in its manifest.

  Raises:
    FileExistsError: there is one already.
  """
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
  with open(os.open(folder / FILE, flags, 0o600), 'w', encoding='ascii') as file:
    file.write(f'{np.asarray(root, ">u4").tobytes().hex()} {run_id}\n')
    file.flush()
    os.fsync(file.fileno())


def read(folder: pathlib.Path, run_id: str | None) -> np.ndarray:
  """Returns the root, uint32 [2], of the run in a folder.

  Args:
    folder: folder of the run.
    run_id: id of the run, as in its manifest; None: it has none, and so no root either.

  Raises:
    ValueError: the file is missing, is no such file, or is of another run; the message does not
      quote it.
  """
  path = folder / FILE
  try:
    text, _, owner = path.read_bytes().strip().decode('ascii').partition(' ')
    held = bytes.fromhex(text)
  except FileNotFoundError as error:
    raise ValueError(_needed(path, 'none')) from error
  except (OSError, ValueError):
    raise ValueError(_needed(path, 'a file that is none')) from None  # its text is a secret
  if len(text) != _DIGITS or len(held) != 4 * _WORDS:
    raise ValueError(_needed(path, 'a file that is none'))
  if owner != run_id:
    raise ValueError(_needed(path, 'that of another run'))
  return np.frombuffer(held, '>u4').astype(np.uint32)


def _needed(path: pathlib.Path, got: str) -> str:
  return (
    f"{path} must be the secret root of the run's noise, got {got}: put the run's own back, since "
    'other noise would be a second release of the same rounds.'
  )
