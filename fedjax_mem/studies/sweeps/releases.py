"""What a sweep has released of its clients: the composition of all its lanes."""

import pathlib
from collections.abc import Sequence

from fedjax_mem.account import Ledger, LocalLedger
from fedjax_mem.account import together as composed
from fedjax_mem.account.claims import Claim
from fedjax_mem.core import IncompatibleStages


def together(folders: Sequence[pathlib.Path], repeatable: bool = False) -> str | None:
  """Returns the statement of the release of all runs in these folders, or None without a claim.

  Each layer with noise is stated by itself, as in a run. The target is the least delta of the runs.

  Args:
    folders: of the runs.
    repeatable: whether the noise comes from `noise_seed`: lanes of one seed then share it.
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
    shared = '; lanes of one noise_seed share their noise: this is what they cost with secret roots'
    lines.append(f'{layer}: all {len(made)} lanes together: {said}{shared if repeatable else ""}')
  return '; '.join(lines) or None
