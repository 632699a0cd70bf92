"""The sections of the page of one run, each about one question, from what its folder holds."""

import json
import statistics
from collections.abc import Sequence

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.report import page, panels
from fedjax_mem.report.runs import MAIN, Run, marked, rounds_done, series

SCORES = 'client_scores.json'


def of_run(run: Run) -> list[page.Section]:
  """Returns the sections of a run that has something to show in them, in their order."""
  made = (
    _clients(run),
    _partition(run),
    _contributions(run),
    _sent(run),
    _privacy(run),
    _time(run),
  )
  return [x for x in made if x is not None]


def of_runs(runs: Sequence[Run]) -> list[page.Section]:
  """Returns the sections of several runs that are compared."""
  made = _sent_of(runs, 'What each run sent until it was as good')
  return [made] if made else []


def _clients(run: Run) -> page.Section | None:
  file = None if run.folder is None else run.folder / SCORES
  if file is None or not file.is_file():
    return None
  said = json.loads(file.read_text(encoding='utf-8'))
  name, scores, less = said['score'], said['values'], said['less_is_better']
  title = marked('How the clients fare', f'client_{name}_mean', [run])
  draw = lambda dark: panels.fairness(scores, name, less, dark)
  alt = f'{name} of {len(scores)} clients, from the worst to the best'
  ordered = sorted(scores, reverse=less)
  lines = [
    f'{len(scores)} clients are scored on what they hold out. Median '
    f'{statistics.median(scores):.4g}, worst {ordered[0]:.4g}, best {ordered[-1]:.4g} '
    f'({name.replace("_", " ")}, after round {said["round"]}).'
  ]
  return page.Section('clients', title, page.picture(draw, alt), lines)


def _partition(run: Run) -> page.Section | None:
  return _kept(run, 'partition', 'Partition of the data', 'examples of each label by client')


def _contributions(run: Run) -> page.Section | None:
  alt = 'contribution of each client'
  return _kept(run, 'contributions', 'Contribution of each client', alt)


def _kept(run: Run, name: str, title: str, alt: str) -> page.Section | None:
  """Returns the section of a picture that the run has drawn."""
  light, dark = (None if run.folder is None else run.folder / x for x in _files(name))
  if light is None or dark is None or not light.is_file():
    return None
  images = [page.data((x if x.is_file() else light).read_bytes()) for x in (light, dark)]
  if run.uncovered:  # both are of single clients
    title = f'{title} ({NOT_COVERED})'
  return page.Section(name, title, page.Picture(images[0], images[1], alt))


def _files(name: str) -> tuple[str, str]:
  return f'{name}.png', f'{name}_dark.png'


def _sent(run: Run) -> page.Section | None:
  section = _sent_of([run], 'Communication')
  clients = sum(r.get('clients', 0) for r in run.records)
  if section is None or not clients:
    return section
  up, down = (sum(r.get(key, 0) for r in run.records) for key in ('bytes_up', 'bytes_down'))
  table = page.facts(
    [
      ('sent by clients, all rounds', page.size(up)),
      ('sent to clients, all rounds', page.size(down)),
      ("a client's message, up", page.size(up / clients)),
      ("a client's message, down", page.size(down / clients)),
    ]
  )
  return section._replace(table=table)


def _sent_of(runs: Sequence[Run], title: str) -> page.Section | None:
  key = next((x for x in _GOOD if any(series(run, x)[1] for run in runs)), 'test_loss')
  draw = lambda dark: panels.traffic(runs, key, dark)
  drawn = page.picture(draw, f'{key.replace("_", " ")} against the bytes sent until then')
  return page.Section('sent', marked(title, 'bytes_up', runs), drawn) if drawn else None


_GOOD = tuple(f'test_{name}' for name in MAIN)


def _privacy(run: Run) -> page.Section | None:
  stated = run.manifest.get('privacy', {}).get('statements', [])
  if not stated:
    return None
  coverage = run.manifest.get('coverage', {})
  lines = list(stated)
  for key, words in (('covered', 'The claim covers'), ('not covered', 'It does not cover')):
    if coverage.get(key):
      lines.append(f'{words} {", ".join(coverage[key])}.')
  draw = lambda dark: panels.spent(run, dark)
  return page.Section('privacy', 'Privacy', page.picture(draw, 'epsilon by round'), lines)


def _time(run: Run) -> page.Section | None:
  each = series(run, 'seconds')[1]
  if not each:
    return None
  told = run.manifest.get('time', {})
  compiling = run.manifest.get('compile_seconds')
  rows = [] if compiling is None else [('compiling', page.duration(compiling))]
  rows += [
    (f'{rounds_done(run):,} rounds', page.duration(sum(each))),
    ('a round, median', page.duration(statistics.median(each))),
  ]
  for key, words in (('evaluation', 'evaluation'), ('checkpoints', 'checkpoints')):
    if key in told:
      rows.append((words, page.duration(told[key])))
  words = run.manifest.get('execution', {}).get('words')
  lines = [f'A round trains {words}.'] if words else []
  return page.Section('time', marked('Time', 'seconds', [run]), None, lines, page.facts(rows))
