"""Runs configurations one after another in one cluster: stacks.py OUT DEVICES FILE ...

What a process holds of examples and client states is written to OUT/held-PROCESS.json.
"""

import json
import pathlib
import sys

import jax

import fedjax_mem as fm
from fedjax_mem.runner import cluster
from fedjax_mem.runner.rounds import Rounds


def bytes_here(tree):
  return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards)


def main(out, devices, *files):
  held = {}
  told = Rounds._segment

  def segment(self, state, count):
    population = self.ready.source.population
    held[pathlib.Path(file).stem] = {
      'examples': bytes_here((population.arrays, population.index)),
      'states': bytes_here(state.clients),
    }
    return told(self, state, count)

  Rounds._segment = segment
  for file in files:
    options = [f'execution.devices={devices}', 'execution.data=divided']
    options += ['noise_seed=5'] if 'private' in file else []
    fm.run(fm.load_config(file, options), out, quiet=True)
  mine = cluster.current()
  (pathlib.Path(out) / f'held-{mine.process}.json').write_text(json.dumps(held))
  mine.leave(0)


if __name__ == '__main__':
  main(*sys.argv[1:])
