"""Contribution scores of the clients at the end of a run, as a file and a plot."""

import json
import pathlib

import numpy as np

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.core import State
from fedjax_mem.report import figures, plots
from fedjax_mem.stages.select.contribution import Score


def write(
  folder: pathlib.Path, state: State, names: tuple[str, ...] | None, claims: bool = False
) -> None:
  """Writes `contributions.json` and `contributions.png` if a layer scores the clients.

  Args:
    folder: folder of the run.
    state: state after the last round.
    names: names of the clients, or None: they are named by their positions.
    claims: whether the run claims privacy, which does not cover the scores.
  """
  tables = [x for x in state.clients.values() if isinstance(x, Score)]
  if not tables:
    return
  scores, rounds = (np.asarray(x) for x in tables[0])
  rows = [
    {'client': names[i] if names else i, 'score': float(score), 'rounds': int(count)}
    for i, (score, count) in enumerate(zip(scores, rounds, strict=True))
  ]
  (folder / 'contributions.json').write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
  title = f'Contribution of each client ({NOT_COVERED})' if claims else None
  figures.save(plots.contributions(scores, rounds, title), folder / 'contributions.png')
