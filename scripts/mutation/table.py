"""The table of a mutation run before and after a change of the tests."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mutation.drawing import Mutant

Verdicts = dict[str, dict[str, Any]]
DEAD = ('killed', 'timeout')
WIDTH = 60  # characters of code in a cell, about


def page(
  mutants: Sequence[Mutant], before: Verdicts, after: Verdicts, arguments: dict[str, str]
) -> tuple[str, list[str]]:
  """Returns the page in Markdown, and what is wrong: nothing, if no test got weaker.

  Args:
    mutants: all that were drawn.
    before: verdicts by the tests as they were, by mutant.
    after: verdicts by the tests as they are.
    arguments: why a mutant cannot be told from the original, by mutant.
  """
  lost = [m for m in mutants if _dead(before, m) and not _dead(after, m)]
  open_ones = [m for m in mutants if not _dead(after, m) and not arguments.get(m['id'])]
  opening = f'{len(mutants)} mutants of the package, one changed place each. Paths and lines are'
  said = ['# Mutants', '', opening, 'those of the commit that was mutated.', '']
  said += ['| | before | after |', '|---|---|---|']
  counts = [Counter(_verdict(v, m) for m in mutants) for v in (before, after)]
  said += [f'| {k} | {counts[0][k]} | {counts[1][k]} |' for k in sorted(counts[0] | counts[1])]
  for title, some in (
    ('DIED BEFORE AND NOT AFTER', lost),
    ('ALIVE AFTER, WITH NO ARGUMENT', open_ones),
  ):
    if some:
      said += ['', f'## {title}', '', *(f'- **{m["id"]}** {_place(m)}: {_change(m)}' for m in some)]
  said += ['', '## All', '', '| id | place | function | change | killer before | killer after |']
  said += ['|---|---|---|---|---|---|']
  for m in mutants:
    argument = arguments.get(m['id'])
    last = _cell(after, m) + (f'; equivalent: {_escape(argument)}' if argument else '')
    function = f'`{m["function"]}`' if m['function'] else ''
    cells = (m['id'], _place(m), function, _change(m), _cell(before, m), last)
    said.append(f'| {" | ".join(cells)} |')
  complaints = [f'{m["id"]} ({_place(m)}) died before and does not die after.' for m in lost]
  complaints += [
    f'{m["id"]} ({_place(m)}) is alive and has no argument.' for m in open_ones if m not in lost
  ]
  return '\n'.join(said) + '\n', complaints


def _verdict(verdicts: Verdicts, mutant: Mutant) -> str:
  return verdicts.get(mutant['id'], {'verdict': 'not run'})['verdict']


def _dead(verdicts: Verdicts, mutant: Mutant) -> bool:
  return _verdict(verdicts, mutant) in DEAD


def _place(mutant: Mutant) -> str:
  return f'{mutant["file"]}:{mutant["line"]}'


def _cell(verdicts: Verdicts, mutant: Mutant) -> str:
  """Returns the killer, or the verdict if there is none."""
  verdict = _verdict(verdicts, mutant)
  killer = verdicts.get(mutant['id'], {}).get('killer')
  if not killer:
    return f'**{verdict}**'
  return _code(killer) + (f' ({verdict})' if verdict == 'timeout' else '')


def _change(mutant: Mutant) -> str:
  """Returns `old` → `new` with what stands around it in the line."""
  text, at = mutant['text'], mutant['column']
  end = at + len(mutant['old'])
  room = max(0, (WIDTH - max(len(mutant['old']), len(mutant['new']))) // 2)
  left, right = text[:at].lstrip(), text[end:].rstrip()
  left = left if len(left) <= room else '…' + left[len(left) - room :]
  right = right if len(right) <= room else right[:room] + '…'
  return ' → '.join(_code(left + x + right) for x in (mutant['old'], mutant['new']))


def _code(text: str) -> str:
  """Returns text as code in a cell: on one line, with bars that do not end the cell."""
  ticks = '``' if '`' in text else '`'
  return ticks + ' '.join(text.split()).replace('|', '\\|') + ticks


def _escape(text: str) -> str:
  return ' '.join(text.split()).replace('|', '\\|')
