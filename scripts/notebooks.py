"""Executes the notebooks of docs/notebooks, or takes their outputs away.

    pip install -e '.[test,notebooks]'
    python scripts/notebooks.py                # executes all, two at a time
    python scripts/notebooks.py 01 --keep out  # those that begin so; the executed ones are kept
    python scripts/notebooks.py --strip        # what is committed has no outputs

Each has a kernel and an empty folder of its own. A cell that raises, or that fills its page, is an
error.
"""

import argparse
import concurrent.futures
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'docs' / 'notebooks'
_LINES = 40  # of text that one cell may write
_SECONDS = 300  # for one cell: only one that hangs takes so long


def stripped(book: dict[str, Any]) -> dict[str, Any]:
  """Returns a notebook without outputs, numbers of executions and what editors note of cells."""
  cells = [{**cell, 'metadata': {}} for cell in book['cells']]
  for cell in cells:
    if cell['cell_type'] == 'code':
      cell |= {'execution_count': None, 'outputs': []}
  kept = {'kernelspec': book['metadata']['kernelspec'], 'language_info': {'name': 'python'}}
  return {**book, 'cells': cells, 'metadata': kept}


def text(book: dict[str, Any]) -> str:
  """Returns a notebook as it is written into its file."""
  return json.dumps(book, indent=1, ensure_ascii=False) + '\n'


def untidy(book: dict[str, Any]) -> list[str]:
  """Returns what is wrong with the outputs of an executed notebook.

  A run is one bar, which ends at its last round. Text has few lines, and no line that was
  overwritten. A figure is shown as a picture.
  """
  found = []
  for number, cell in enumerate(book['cells']):
    outputs = cell.get('outputs', [])
    said = ''.join(''.join(x['text']) for x in outputs if x['output_type'] == 'stream')
    if '\r' in said or said.count('\n') > _LINES:
      found.append(f'cell {number} writes {said.count(chr(10))} lines of text')
    held = [x['data'] for x in outputs if 'data' in x]
    bars = [x for x in held if '<progress' in ''.join(x.get('text/html', ''))]
    rounds = [''.join(x['text/plain']).split(' ')[1].split('/') for x in bars]
    runs = said.count('compiling a round of')
    if len(bars) != runs or any(done != total for done, total in rounds):
      found.append(f'cell {number} has {runs} runs and these bars: {rounds}')
    plain = [''.join(x.get('text/plain', '')) for x in held if 'image/png' not in x]
    if any(x.startswith('<Figure') for x in plain):
      found.append(f'cell {number} shows no picture of its figure')
  return found


def execute(path: Path, keep: Path | None) -> tuple[str, str]:
  """Executes a notebook and returns (its times, what is wrong with it or '')."""
  import nbclient
  import nbformat

  began, before, wrong = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), []
  book = nbformat.read(path, as_version=4)
  with tempfile.TemporaryDirectory() as place:
    client = nbclient.NotebookClient(
      book,
      timeout=_SECONDS,
      kernel_name='python3',
      extra_arguments=['--log-level=ERROR'],
      resources={'metadata': {'path': place}},
    )
    try:
      client.execute()
    except nbclient.exceptions.CellExecutionError as error:
      wrong.append(str(error))
  if keep:
    keep.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, keep / path.name)
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
  times = f'{time.monotonic() - began:.0f} s, {cpu:.0f} s of processors'
  return times, '\n'.join(wrong or untidy(book))


def main() -> int:
  """Does what the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', help='beginnings of names; none: all')
  parser.add_argument('--strip', action='store_true', help='take the outputs away')
  parser.add_argument('--keep', type=Path, help='folder for the executed notebooks')
  parser.add_argument('-n', type=int, default=2, help='how many at a time')
  given = parser.parse_args()
  paths = [
    x for x in sorted(FOLDER.glob('*.ipynb')) if x.name.startswith(tuple(given.names or ['']))
  ]
  if not paths:
    parser.error(f'names must begin one of {FOLDER}, got {given.names!r}')
  if given.strip:
    for path in paths:
      path.write_text(text(stripped(json.loads(path.read_text('utf-8')))), 'utf-8')
    return 0
  failed = False
  with concurrent.futures.ProcessPoolExecutor(given.n) as pool:
    results = pool.map(execute, paths, [given.keep] * len(paths))
    for path, (times, wrong) in zip(paths, results, strict=True):
      print(f'{path.name}: {times} {wrong}', flush=True)
      failed |= bool(wrong)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
