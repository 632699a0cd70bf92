"""The page: self-contained, escaped, and it says what it should."""

import ast
import dataclasses
import html.parser
import math
import pathlib
import re

import pytest

from fedjax_mem import report
from fedjax_mem.report import Run, partition, render, save, write_report

EVIL = '<script>alert("x")</script>&\''


class Page(html.parser.HTMLParser):
  """Collects tags, attributes and text; checks that tags are balanced."""

  VOID = frozenset({'meta', 'img', 'source', 'br'})

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.words = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


def run(name='fine', seed=0, optimizer='sgd', **more):
  records = [
    {
      'round': r, 'train_loss': 2 / r, 'test_loss': 2.5 / r, 'test_accuracy': 0.8 + r / 100,
      'clients': 10, 'examples': 600, 'seconds': 40.0, 'not_finite': [-1],
    }
    for r in (1, 2, 3)
  ]  # fmt: skip
  config = {
    'name': name, 'seed': seed, 'rounds': 3, 'data': {'name': 'digits'},
    'server': {'optimizer': optimizer}, 'model': {'options': {'hidden': [64]}},
  }  # fmt: skip
  manifest = {'versions': {'jax': '0.10.2'}, 'devices': ['cpu:0']}
  values = {'name': name, 'records': records, 'config': config, 'manifest': manifest}
  return Run(**{**values, **more})


@pytest.mark.slow
def test_scores_that_a_claim_does_not_cover_say_so_over_seeds_too():
  runs = [run(str(seed), seed=seed) for seed in (0, 1)]
  bare = [dataclasses.replace(x, records=[{**r, 'covered': []} for r in x.records]) for x in runs]
  assert 'mean ± standard deviation (not covered by ε)' in Page(render(bare)).text
  text = Page(render(runs)).text
  assert 'mean ± standard deviation' in text and 'not covered' not in text


@pytest.mark.slow
def test_a_regression_has_its_own_score_over_seeds_and_the_best_marked():
  def scored(name, seed, r2):
    records = [{'round': r, 'test_r2': r2, 'test_loss': 0.5, 'seconds': 1.0} for r in (1, 2, 3)]
    return run(name, seed=seed, records=records)

  page = render([scored('a', 0, 0.25), scored('b', 1, 0.75)])
  assert '0.50 ± 0.35' in Page(page).text and '%' not in Page(page).text.partition('Details')[0]
  assert re.search(r'class="n best"[^>]*>\s*0\.75', page)


@pytest.mark.slow
def test_a_page_says_what_happened():
  text = Page(render(run())).text
  for words in ('fine', '83.00 %', 'best in round 3', '2 min 00 s', '1,800', 'jax', '0.10.2',
                'cpu:0', 'digits', 'model.options.hidden', '[64]'):  # fmt: skip
    assert words in text, words


@pytest.mark.slow
def test_a_page_needs_no_network_and_runs_no_script():
  page = Page(render([run('a'), run('b', seed=1)]))
  assert 'script' not in page.tags and 'link' not in page.tags
  named = lambda *names: [value for name, value in page.attributes if name in names]
  sources = named('src', 'srcset')
  assert len(sources) == 4  # wide and narrow, light and dark
  assert all(x.startswith('#') for x in named('href'))
  assert set(named('href')) == {f'#{x}' for x in named('id')}
  assert all(source.startswith('data:image/png;base64,iVBOR') for source in sources)
  assert not any(name.startswith('on') for name, _ in page.attributes)
  assert 'url(' not in render(run()) and '@import' not in render(run())


@pytest.mark.slow
def test_every_string_is_escaped():
  evil = run(
    EVIL,
    config={EVIL: EVIL, 'data': {'name': EVIL}, 'rounds': 9},
    manifest={EVIL: EVIL, 'warnings': [EVIL]},
    records=[{'round': 1, EVIL: EVIL, 'test_accuracy': 0.5}],
  )
  for sources in (evil, [evil, run('b')]):
    for title in (None, EVIL):
      text = render(sources, title)
      assert '<script' not in text.lower()
      assert Page(text).text.count('<script>alert("x")</script>') >= 6


@pytest.mark.slow
def test_warnings_are_shown():
  records = [{'round': 1, 'train_loss': math.nan, 'not_finite': [4, -1]}]
  text = Page(render(run(records=records, manifest={'warnings': ['Sums may differ.']}))).text
  for words in ('Sums may differ.', '1 of 3 rounds', '(clients 4)', 'train_loss is not finite'):
    assert words in text
  assert 'class="warnings"' not in render(run())


@pytest.mark.slow
def test_a_comparison_marks_what_differs_and_what_is_best():
  runs = [run('a', 0), run('b', 1), run('c', 0, 'fedadam')]
  runs[1].records[2]['test_accuracy'] = 0.9
  text = render(runs)
  marked = re.findall(r'<tr class="differs"><th scope="row"><code>([^<]*)</code>', text)
  # Once in the table of differences, once among all settings.
  assert marked == ['seed', 'server.optimizer'] * 2
  assert re.findall(r'<td class="n best">([^<]*)</td>', text) == ['90.00 %', '90.00 %']
  assert '86.50 ± 4.95 %' in Page(text).text


@pytest.mark.slow
def test_runs_that_recorded_different_things_are_compared():
  text = Page(render([run('a'), run('b', records=[]), [{'round': 1, 'train_loss': 1.0}]])).text
  assert '3 runs compared' in text


@pytest.mark.slow
def test_rounds_that_were_lost_have_no_results():
  lost = {'round': 2, 'clients': 0, 'lost': True}
  first, _, last = run().records
  for records in ([first, lost, last], [{**lost, 'round': 1}, last], [first, lost], [lost]):
    text = Page(render(run(records=records))).text
    assert ('best in round' in text) == (len(records) > 1)


def test_a_folder_with_a_picture_of_its_partition(tmp_path):
  (tmp_path / 'config.toml').write_text('name = "x"\nrounds = 1\n')
  (tmp_path / 'metrics.jsonl').write_text('{"round": 1, "train_loss": "NaN"}\n')
  save(partition([[1, 2]]), tmp_path / 'partition.png')
  path = write_report(tmp_path, tmp_path / 'deep' / 'report.html')
  text = path.read_text(encoding='utf-8')
  assert text.startswith('<!doctype html>')
  assert 'alt="examples of each label by client"' in text and 'href="#partition"' in text
  Page(text)


def test_no_run_is_refused():
  with pytest.raises(ValueError, match='at least one run'):
    render([])


def test_the_report_imports_no_jax():
  for path in pathlib.Path(report.__file__).parent.glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
      names += [node.module] if isinstance(node, ast.ImportFrom) else []
      for name in names:
        room = name.split('.')
        assert room[0] not in ('jax', 'flax', 'optax', 'orbax'), path
        # `_wording` and `_version` are constants.
        assert room[0] != 'fedjax_mem' or room[1] in ('report', '_wording', '_version'), path
