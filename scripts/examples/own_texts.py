"""Your own texts: a file an author, the next character, from Python and from a configuration.

A configuration imports the model by name: this folder must be on PYTHONPATH.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import fedjax_mem as fm

CONFIG = """
version = 1
rounds = 10

[data]
name = "texts"

[data.options]
path = "{folder}/letters"   # <author>.txt, or folders of .txt files
length = 16

[model]
name = "own_texts:bigram"   # or "transformer", "char_lstm"

[client]
learning_rate = 20.0

[selection]
cohort_size = 2

[evaluation]
every = 5
"""
LINES = {
  'ann': 'the rain in spain stays mainly in the plain, ',
  'bob': 'she sells sea shells by the sea shore, ',
  'cem': 'the quick brown fox jumps over the lazy dog, ',
}


def bigram(input_shape: tuple[int, ...], num_classes: int) -> fm.models.Model:
  """Returns a table of which token follows which; the loss and the scores are the task's."""
  init = lambda key: jnp.zeros((num_classes, num_classes))
  apply = lambda table, x: jax.nn.one_hot(x, num_classes) @ table
  return fm.models.from_functions(
    init, apply, input_shape, num_classes, name='bigram', input_dtype=jnp.int32
  )


def main(folder: Path) -> tuple[fm.Result, fm.Result]:
  """Runs the experiment by its file, and with the texts read from Python."""
  (folder / 'letters').mkdir()
  for author, line in LINES.items():
    (folder / 'letters' / f'{author}.txt').write_text(line * 12)
  (folder / 'letters.toml').write_text(CONFIG.format(folder=folder))
  by_file = fm.run(fm.load_config(folder / 'letters.toml'), folder / 'runs', quiet=True)
  given = fm.load_config(folder / 'letters.toml', ['data.name=given', 'data.options='])
  data = fm.data.from_texts(folder / 'letters', length=16)
  return by_file, fm.run(given, folder / 'runs', data=data, quiet=True)


if __name__ == '__main__':
  for result in main(Path(sys.argv[1]).absolute()):
    print(f'perplexity {result.metrics[-1]["test_perplexity"]:.2f}: {result.folder}')
