"""What a sweep has released of its clients: the composition of all its lanes."""

import pathlib
from collections.abc import Sequence

from fedjax_mem.account import Ledger, LocalLedger, together as composed
from fedjax_mem.account.claims import Claim
from fedjax_mem.core import IncompatibleStages


def together(folders: Sequence[pathlib.Path]) -> str | None:
  """Returns the statement of the release of all runs in these folders, or None without a claim.

  Each layer with noise is stated by itself, as in a run. The target is the least delta of the runs.
  """
  found: dict[str, list[tuple[Claim, int, float]]] = {}
  for folder in folders:
    for file in sorted(folder.glob('ledger*.json')):
      if file.name == 'ledger.json':
        one = Ledger.load(file)
        entry, rounds = one.entry, one.charged
      else:
        many = LocalLedger.load(file)
        entry, rounds = many.entry, many.most * many.steps
      found.setdefault(entry.layer, []).append((entry.claim, rounds, entry.target_delta))
  lines = []
  for layer, made in found.items():
    delta = min(x[2] for x in made)
    try:
      said = str(composed([(claim, rounds) for claim, rounds, _ in made], delta))
    except IncompatibleStages as error:
      said = f'no statement: {error}'
    lines.append(f'{layer}: all {len(made)} lanes together: {said}')
  return '; '.join(lines) or None
