"""Users' own data: tables, arrays, texts and images, read into a `Table`.

Each function returns the examples before they are given to clients; `data.distribute` does that,
and so does `data.load` and a configuration by the names of `OWN`.
"""

from collections.abc import Callable

from fedjax_mem.data.own.arrays import from_npz
from fedjax_mem.data.own.builders import from_tfds
from fedjax_mem.data.own.columns import from_csv, from_parquet
from fedjax_mem.data.own.images import from_images
from fedjax_mem.data.own.texts import from_texts
from fedjax_mem.data.table import Table

OWN: dict[str, Callable[..., Table]] = {
  'npz': from_npz,
  'csv': from_csv,
  'parquet': from_parquet,
  'texts': from_texts,
  'images': from_images,
  'tfds': from_tfds,
}
