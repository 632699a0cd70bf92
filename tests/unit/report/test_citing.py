"""What to cite: entries for every name of every registry, and BibTeX that another reader takes."""

import json
import re
from pathlib import Path

import pytest
from reference.experiments import one_line

from fedjax_mem import __version__, data, mechanisms, models, optim
from fedjax_mem.cli import main as cli
from fedjax_mem.config import registry
from fedjax_mem.config.load import load_config, shipped, to_dict
from fedjax_mem.config.sections import DTYPES
from fedjax_mem.core.running import HANDLINGS
from fedjax_mem.data import tfds
from fedjax_mem.report import Run, citing, render, sources
from fedjax_mem.stages import algorithm, select, weigh
from fedjax_mem.studies import epsilons, fedavgm, fedprox_synthetic, niid_bench

ROOT = Path(__file__).parents[3]
REGISTRIES = {
  'ALGORITHMS': algorithm.ALGORITHMS,
  'SERVER_OPTIMIZERS': optim.SERVER_OPTIMIZERS,
  'SAMPLERS': select.SAMPLERS,
  'TRACES': select.TRACES,
  'WEIGHINGS': weigh.WEIGHINGS,
  'STAGES': registry.LAYERS,
  'MECHANISMS': mechanisms.MECHANISMS,
  'MODELS': models.MODELS,
  'DATA': {**data.LOADERS, **tfds.BUILDERS},
  'PARTITIONS': data.PARTITIONS,
  'STATISTICS': dict.fromkeys(x for x in HANDLINGS if x != 'refuse'),
  'DTYPES': dict.fromkeys(x for x in DTYPES if x != 'float32'),
  'REMAT': {'on': None},
}


def read(text):
  """Returns key -> (kind, fields) of BibTeX, sign by sign; text between entries is skipped."""
  found, place = {}, text.find('@')
  while place >= 0:
    kind, place = text[place + 1 : text.index('{', place)], text.index('{', place) + 1
    key, place = text[place : text.index(',', place)], text.index(',', place) + 1
    assert key not in found and re.fullmatch(r'[a-z_0-9]+', key), key
    fields = {}
    while text[place:].lstrip()[0] != '}':
      name, place = text[place : text.index('=', place)].strip(), text.index('=', place) + 1
      start = text.index('{', place)
      assert not text[place:start].strip()
      depth, place = 1, start + 1
      while depth:
        depth += {'{': 1, '}': -1}.get(text[place], 0)
        place += 1
      assert name not in fields
      fields[name] = text[start + 1 : place - 1]
      rest = text[place:].lstrip()
      place = len(text) - len(rest) + (rest[0] == ',')
      assert rest[0] in ',}'
    found[key] = (kind, fields)
    place = text.find('@', place)
  return found


@pytest.fixture(scope='module')
def known():
  return read((ROOT / 'docs' / 'references.bib').read_text())


@pytest.mark.parametrize('name', REGISTRIES)
def test_every_name_of_a_registry_has_a_line(name):
  assert set(getattr(sources, name)) == set(REGISTRIES[name])


def test_every_key_is_an_entry_and_every_entry_is_for_something(known):
  tables = [getattr(sources, name) for name in (*REGISTRIES, 'ACCOUNTANTS')]
  used = {key for table in tables for keys in table.values() for key in keys}
  used |= {key for x in (niid_bench, fedavgm, fedprox_synthetic) for key in x.TABLE.sources}
  assert used | {*epsilons.SOURCES, citing.TOOL} == set(known) == set(citing.references())


def test_entries_have_what_a_reader_needs_to_find_the_source(known):
  for key, (kind, fields) in known.items():
    assert {'title', 'author', 'year'} <= set(fields) or key == citing.TOOL, key
    where = {'article': 'journal', 'inproceedings': 'booktitle', 'misc': 'title'}[kind]
    assert fields[where], key
    assert re.fullmatch(r'\d{4}\.\d{5}|\d{4}\.\d{4}', fields.get('eprint', '1234.5678')), key
    assert ('eprint' in fields) == (fields.get('archiveprefix') == 'arXiv'), key
    assert key == citing.TOOL or fields['year'] in key, key
  numbers = [fields['eprint'] for _, fields in known.values() if 'eprint' in fields]
  assert len(set(numbers)) == len(numbers)


def test_bibtex_of_all_shipped_experiments_says_no_more_than_the_references(known):
  said = citing.bibtex([to_dict(load_config(name)) for name in shipped()])
  found = read(said)
  note = found[citing.TOOL][1].pop('note')
  assert note == f'Version {__version__}' and found.items() <= known.items()
  assert {'bonawitz2017practical', 'alistarh2017qsgd', 'li2022federated'} <= set(found)
  assert '% model.name = logistic: of fedjax_mem itself: cite fedjax_mem' in said.splitlines()


def test_what_is_inside_a_stage_is_cited_and_what_is_unknown_is_said():
  first = {'use': 'error_feedback', 'codec': 'top_k'}
  config = {
    'algorithm': {'name': 'mine.here:made'},
    'selection': {'name': 'uniform', 'dropout': 0.1, 'availability': {'use': 'markov'}},
    'data': {'name': 'a\n@misc{b,'},
    'privacy': {'delta': 1e-5, 'accountant': 'pld'},
    'stages': [
      {'use': 'chain', 'options': {'first': first, 'second': 'quantize'}},
      {'use': 'central', 'options': {'mechanism': 'discrete_gaussian', 'clip_norm': 1.0}},
    ],
  }
  said = citing.bibtex([config, config])
  assert set(read(said)) == {
    citing.TOOL, 'mcmahan2017communication', 'seide2014one', 'stich2018sparsified',
    'karimireddy2019error', 'aji2017sparse', 'alistarh2017qsgd', 'mcmahan2018learning',
    'canonne2020discrete', 'kairouz2021distributed', 'doroshenko2022connect',
  }  # fmt: skip
  lines = said.splitlines()
  assert lines.count('% algorithm.name = mine.here:made: not of fedjax_mem: cite its authors') == 1
  assert '% stages[0].first.codec.use = top_k: aji2017sparse, stich2018sparsified' in lines
  assert '% selection.dropout = on: of fedjax_mem itself: cite fedjax_mem' in lines


def test_a_report_ends_with_the_citation_in_the_version_of_the_run():
  config = {'algorithm': {'name': 'scaffold'}}
  runs = [Run(name=x, records=[], config=config, manifest={'fedjax_mem': x}) for x in '12']
  page = render(runs)
  end = page[page.index('How to cite') :]
  assert 'note = {Version 1 and 2}' in end and end.count('@inproceedings{karimireddy2020') == 1
  assert end.rstrip().endswith('</pre>\n</body>\n</html>')


def test_the_command(capsys, tmp_path, known):
  assert cli.main(['cite']) == 0
  assert set(read(capsys.readouterr().out)) == {citing.TOOL}
  (tmp_path / 'config.toml').write_text('[model]\nname = "transformer"\n')
  (tmp_path / 'manifest.json').write_text(json.dumps({'fedjax_mem': '9.9'}))
  assert cli.main(['cite', str(tmp_path)]) == 0
  found = read(capsys.readouterr().out)
  assert set(found) == {citing.TOOL, 'vaswani2017attention', 'radford2019language'}
  assert found[citing.TOOL][1]['note'] == 'Version 9.9'
  assert cli.main(['cite', 'quickstart']) == 0
  assert 'alpaydin1998optical' in read(capsys.readouterr().out)
  assert cli.main(['cite', 'quickstrat']) == 2
  assert "'quickstart'" in one_line(capsys.readouterr().err)


def test_the_citation_file_says_what_the_entry_says(known):
  text = (ROOT / 'CITATION.cff').read_text()
  title = known[citing.TOOL][1]['title'].replace('\\', '').replace('{', '').replace('}', '')
  assert f'title: "{title}"' in text.splitlines()
  assert '\nversion' not in text  # it is in one place
