"""Your own arrays: clients of different sizes, from Python and from .npz files, one a client."""

import sys
from pathlib import Path

import numpy as np

import fedjax_mem as fm

CONFIG = """
version = 1
rounds = 20

[data]
name = "npz"

[data.options]
path = "{folder}/birds"     # <client>.npz with arrays x and y

[model]
name = "mlp"
options = {{ hidden = [16] }}

[client]
learning_rate = 0.2

[selection]
cohort_size = 4

[evaluation]
every = 10
"""


def birds() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns the measures and the names of birds that each of eight watchers saw."""
  rng = np.random.default_rng(0)
  seen = {}
  for i in range(8):
    kind = rng.choice(3, 10 + 10 * i)
    x = rng.normal(size=(len(kind), 4)) + 2 * np.eye(4)[kind]
    seen[f'watcher_{i}'] = x.astype(np.float32), np.array(['finch', 'robin', 'wren'])[kind]
  return seen


def main(folder: Path) -> tuple[fm.Result, fm.Result]:
  """Runs the experiment on files, and on the arrays themselves."""
  clients = birds()
  (folder / 'birds').mkdir()
  for who, (x, y) in clients.items():
    np.savez(folder / 'birds' / who, x=x, y=y)
  (folder / 'birds.toml').write_text(CONFIG.format(folder=folder))
  by_file = fm.run(fm.load_config(folder / 'birds.toml'), folder / 'runs', quiet=True)
  given = fm.load_config(folder / 'birds.toml', ['data.name=given', 'data.options='])
  data = fm.data.from_clients(clients)
  return by_file, fm.run(given, folder / 'runs', data=data, quiet=True)


if __name__ == '__main__':
  for result in main(Path(sys.argv[1]).absolute()):
    print(f'macro F1 {result.metrics[-1]["test_macro_f1"]:.3f}: {result.folder}')
