"""Mutants: small wrong changes in one place of a source file, drawn by seed, applied by offset."""

import ast
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutation.sites import Site, sites

Mutant = dict[str, Any]


def read(path: Path) -> str:
  """Returns the text of a file with its line ends as they are."""
  return path.read_bytes().decode('utf-8')


def shares(sizes: dict[str, int], count: int) -> dict[str, int]:
  """Returns how many of `count` each takes, in proportion to the square root of its size.

  The root gives small rooms more than their part; what is left over goes to the largest fractions.
  """
  weights = {k: n**0.5 for k, n in sizes.items()}
  exact = {k: count * w / sum(weights.values()) for k, w in weights.items()}
  given = {k: int(x) for k, x in exact.items()}
  for k in sorted(exact, key=lambda k: (given[k] - exact[k], k))[: count - sum(given.values())]:
    given[k] += 1
  return given


def draw(tree: Path, packages: Sequence[str], count: int, seed: int) -> list[Mutant]:
  """Draws mutants of the files of some packages.

  Each package gets its share of them. In it a file is drawn by its number of sites, then a kind
  from those that the file has (or else most mutants would be constants), then a site. No two
  mutants change the same statement, so that all of them can be applied together.

  Args:
    tree: a checkout.
    packages: folders in it.
    count: of mutants.
    seed: of the draw.

  Raises:
    ValueError: a package holds no source, or there are fewer sites than mutants.
  """
  rng = random.Random(seed)
  texts: dict[str, str] = {}
  found: dict[str, dict[str, list[Site]]] = {}
  for package in packages:
    paths = sorted((tree / package).rglob('*.py'))
    texts |= {p.relative_to(tree).as_posix(): read(p) for p in paths}
    names = [p.relative_to(tree).as_posix() for p in paths]
    found[package] = {n: s for n in names if (s := sites(texts[n]))}
    if not found[package]:
      raise ValueError(f'{package} in {tree} holds no Python source with anything to change.')
  numbers = {k: sum(map(len, files.values())) for k, files in found.items()}
  drawn = [
    (name, site)
    for package, share in shares(numbers, count).items()
    for name, site in _sample(rng, package, found[package], texts, share)
  ]
  drawn.sort(key=lambda x: (x[0], x[1].start))
  width = len(str(count))
  return [
    _record(f'm{i:0{width}}', name, texts[name], site) for i, (name, site) in enumerate(drawn, 1)
  ]


def _sample(
  rng: random.Random,
  package: str,
  files: dict[str, list[Site]],
  texts: dict[str, str],
  count: int,
) -> list[tuple[str, Site]]:
  """Returns `count` sites of one package."""
  left = {name: list(found) for name, found in files.items()}
  sizes = [len(x) for x in left.values()]
  taken: list[tuple[str, Site]] = []
  while len(taken) < count:
    if not any(left.values()):
      raise ValueError(f'{package} has room for {len(taken)} mutants, not for {count}.')
    name = rng.choices(list(left), sizes)[0]
    kinds = defaultdict(list)
    for site in left[name]:
      kinds[site.kind].append(site)
    if not kinds:
      continue
    site = rng.choice(kinds[rng.choice(sorted(kinds))])
    if not _changes(texts[name], site):
      left[name].remove(site)
      continue
    taken.append((name, site))
    # Another mutant in the same statement could overlap with this one.
    left[name] = [s for s in left[name] if not _meet(s, site)]
  return taken


def _meet(one: Site, two: Site) -> bool:
  """Whether two sites touch the same lines."""
  return one.statement[0] <= two.statement[1] and two.statement[0] <= one.statement[1]


def _changes(source: str, site: Site) -> bool:
  """Whether the mutant compiles to another program."""
  new = source[: site.start] + site.new + source[site.end :]
  try:
    compile(new, 'mutant', 'exec')
  except SyntaxError:
    return False
  return ast.dump(ast.parse(new)) != ast.dump(ast.parse(source))


def _record(name: str, file: str, source: str, site: Site) -> Mutant:
  """Returns a mutant as it is stored."""
  line = source.count('\n', 0, site.start) + 1
  last = source.count('\n', 0, site.end) + 1
  return {
    'id': name,
    'file': file,
    'line': line,
    'end_line': last,
    'column': site.start - (source.rfind('\n', 0, site.start) + 1),
    'kind': site.kind,
    'function': site.function,
    'at_import': site.at_import,
    'statement': list(site.statement),
    'start': site.start,
    'end': site.end,
    'old': source[site.start : site.end],
    'new': site.new,
    'text': '\n'.join(source.split('\n')[line - 1 : last]),
  }


def mutated(source: str, mutants: Sequence[Mutant]) -> str:
  """Returns the source of a file with some of its mutants applied.

  Raises:
    ValueError: the source is not what a mutant was drawn from, or two of them overlap.
  """
  before = len(source)
  lines = source.split('\n')
  for m in sorted(mutants, key=lambda m: -m['start']):
    there = '\n'.join(lines[m['line'] - 1 : m['end_line']])
    at = len('\n'.join(lines[: m['line'] - 1])) + (m['line'] > 1) + m['column']
    if there != m['text'] or at != m['start']:
      raise ValueError(
        f'{m["id"]} does not fit: line {m["line"]} of {m["file"]} must read {m["text"]!r} (from '
        f'character {m["start"]}), got {there!r}.'
      )
    if m['end'] > before:
      raise ValueError(f'{m["id"]} overlaps with another mutant of {m["file"]}.')
    source = source[: m['start']] + m['new'] + source[m['end'] :]
    before = m['start']
  return source


def check(tree: Path, mutants: Sequence[Mutant]) -> None:
  """Raises `ValueError` unless each mutant fits to the tree."""
  for m in mutants:
    path = tree / m['file']
    if not path.is_file():
      raise ValueError(f'{m["id"]} does not fit: {tree} has no {m["file"]}.')
    mutated(read(path), [m])
