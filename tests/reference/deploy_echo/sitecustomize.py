"""Puts an echo in place of the rounds and of the clients' answers, in the engine's processes alone.

What a job calls cannot be chosen by the job, so tests that need other behaviour start the engine
with this folder first on PYTHONPATH.
"""

import importlib.abc
import importlib.util
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


class Echo(importlib.abc.MetaPathFinder):
  """Finds `serving` and `answering` here."""

  def find_spec(self, name, path=None, target=None):
    """Returns where a module is, None for all but the two."""
    if name in ('fedjax_mem.deploy.serving', 'fedjax_mem.deploy.answering'):
      file = HERE / f'echo_{name.rpartition(".")[2]}.py'
      return importlib.util.spec_from_file_location(name, file)
    return None


if 'FEDJAX_MEM_DEPLOY' in os.environ:
  sys.meta_path.insert(0, Echo())
if 'FEDJAX_MEM_ROGUE' in os.environ:
  spec = importlib.util.spec_from_file_location('rogue', HERE / 'rogue.py')
  rogue = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(rogue)
  rogue.start()
