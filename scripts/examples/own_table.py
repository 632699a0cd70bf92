"""Your own table: prices of flats, a client a city, from Python and from a configuration."""

import sys
from pathlib import Path

import numpy as np

import fedjax_mem as fm

CONFIG = """
version = 1
rounds = 20

[data]
name = "csv"                # or "parquet"

[data.options]
path = "{folder}/flats.csv"
target = "price"
client = "city"
weight = "people"           # how much a city counts: the same in all its rows
task = "regression"

[model]
name = "logistic"           # a linear map; with the loss of the task it is linear regression

[client]
learning_rate = 0.05

[selection]
cohort_size = 3

[weighting]
name = "given"              # by `weight`

[evaluation]
every = 10
clients = 0.2
"""


def flats() -> dict[str, np.ndarray]:
  """Returns a table: 300 flats in six cities of different sizes."""
  rng = np.random.default_rng(0)
  city = rng.choice(6, 300, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
  rooms, age = rng.normal(size=(2, 300))
  price = 3 * rooms - age + 0.3 * city + rng.normal(0, 0.1, 300)
  names = np.array(['Ulm', 'Jena', 'Graz', 'Bern', 'Lodz', 'Metz'])
  people = np.array([126, 108, 291, 134, 670, 117.0])
  return {
    'city': names[city], 'people': people[city], 'rooms': rooms, 'age': age, 'price': price
  }  # fmt: skip


def main(folder: Path) -> tuple[fm.Result, fm.Result]:
  """Runs the experiment on a file, and on the table itself."""
  table = flats()
  lines = [','.join(table), *(','.join(map(str, row)) for row in zip(*table.values(), strict=True))]
  (folder / 'flats.csv').write_text('\n'.join(lines) + '\n')
  (folder / 'flats.toml').write_text(CONFIG.format(folder=folder))
  by_file = fm.run(fm.load_config(folder / 'flats.toml'), folder / 'runs', quiet=True)
  # From Python: a mapping of columns, a pandas DataFrame or a pyarrow Table.
  data = fm.data.from_table(table, 'price', client='city', weight='people', task='regression')
  given = fm.load_config(folder / 'flats.toml', ['data.name=given', 'data.options='])
  return by_file, fm.run(given, folder / 'runs', data=data, quiet=True)


if __name__ == '__main__':
  for result in main(Path(sys.argv[1]).absolute()):
    print(f'R² {result.metrics[-1]["test_r2"]:.3f}: {result.folder}')
