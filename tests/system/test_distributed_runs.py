"""Runs with distributed noise under masks: what is filled in, calibrated, counted and tabulated."""

import dataclasses
import json

import pytest

from fedjax_mem.cli import main as cli
from fedjax_mem.config import build
from fedjax_mem.config.load import StageSection
from fedjax_mem.config.privacy import settled
from fedjax_mem.core import Draws, Integers, Noises
from fedjax_mem.runner import loop
from fedjax_mem.runner.ledgers import open_ledgers
from fedjax_mem.studies import cells
from fedjax_mem.studies import distributed_dp as table_distributed

pytestmark = pytest.mark.slow

PADDED = 704  # 650 parameters in rotated blocks of 64
OVERRIDES = (
  'selection.name=round_robin',
  "weighting={name = 'equal', options = {divisor = 4.0}}",
  'privacy.delta=1e-3',
  'privacy.target_epsilon=20.0',
  'rounds=2',
)


@pytest.fixture
def masked(make):
  """Returns an experiment with distributed noise under a mask."""

  def config(*overrides, bits=16, mask_bits=None, **options):
    options = {'l2_clip_norm': 1.0, 'shares': 3, 'bits': bits} | options
    stages = (
      StageSection(use='distributed', options=options),
      StageSection(use='mask', options={'bits': mask_bits or bits, 'degree': 2}),
    )
    return dataclasses.replace(make(*OVERRIDES, *overrides), stages=stages)

  return config


def layers(config):
  return {x.name: x for x in build.build(config).layers}


def test_sizes_are_filled_in_unless_they_are_said(masked):
  made = layers(masked(noise_multiplier=1.0))
  assert made['integer_noise'].fact(Noises).mechanism.dimension == PADDED
  assert {made[x].fact(Integers).clients for x in ('grid', 'integer_noise', 'mask')} == {4}
  assert layers(masked(noise_multiplier=1.0, clients=9))['grid'].fact(Integers).clients == 9
  poisson = masked('selection.name=poisson', noise_multiplier=1.0)
  made = layers(poisson)
  assert made['grid'].fact(Integers).clients == made['select'].fact(Draws).capacity > 4


@pytest.mark.parametrize('mechanism', ['skellam', 'discrete_gaussian'])
@pytest.mark.parametrize('bits', [11, 20])
def test_noise_is_calibrated_with_the_grid_that_it_makes(masked, mechanism, bits):
  config = masked(bits=bits, mechanism=mechanism)
  parts = build.build(config)
  chooser = next(x for x in parts.layers if x.select is not None)
  given = build.stage_arguments(parts.model, chooser)
  known = settled(config, chooser, given).stages[0].options['noise_multiplier']
  made = next(x for x in parts.layers if x.name == 'integer_noise').fact(Noises).mechanism
  assert made.noise_multiplier == known
  ledgers = open_ledgers(config, parts.layers, parts.data.counts)
  assert ledgers.room(0, 2) == 2  # the budget is kept
  assert 19.9 < ledgers.central.guarantee(2).epsilon <= 20.0
  # A little less noise would not keep it.
  less = masked(bits=bits, mechanism=mechanism, noise_multiplier=known * 0.999)
  with pytest.raises(ValueError, match=r'budget must be at least 20\.0'):
    open_ledgers(less, build.build(less).layers, parts.data.counts)


def test_a_run_counts_the_bits_of_the_sum(masked, tmp_path, undrawn):
  result = loop.run(masked('selection.dropout=0.3', 'rounds=6', bits=13), tmp_path)
  size = 15 + 10 + -(-PADDED * 13 // 8)
  assert {r['bytes_up'] for r in result.metrics} <= {n * size for n in range(5)}
  for record in result.metrics:
    assert record['bytes_up'] == size * record['clients']
    assert record['integer_noise/withheld'] == (record['clients'] < 3)
    assert record['mask/recovered'] == 4 - record['clients']
  assert {r['integer_noise/withheld'] for r in result.metrics} == {0, 1}
  ledger = json.loads((result.folder / 'ledger.json').read_text())
  assert 'skellam' in json.dumps(ledger) and ledger['charged'] == 6


def test_a_mask_of_other_bits_is_refused_before_a_folder_is_made(masked, tmp_path):
  with pytest.raises(ValueError, match="'mask' masks modulo 2"):
    loop.run(masked(mask_bits=20), tmp_path)
  with pytest.raises(ValueError, match='bits must be at least'):
    loop.run(masked(bits=4), tmp_path)
  assert not list(tmp_path.glob('tiny-*'))


def test_the_table_runs_what_is_missing_and_no_more(masked, tmp_path, monkeypatch, undrawn):
  told = []
  base = masked()
  options = {'epsilons': [20.0], 'bits': [4, 14], 'tell': told.append}
  entries = table_distributed.distributed_dp(base, tmp_path, **options)
  assert [(x.target, x.bits) for x in entries] == [(20.0, None), (20.0, 14)]
  assert any('4bits: left out, bits must be at least' in x for x in told)
  plain, noisy = table_distributed.rows(entries)
  assert plain['noise'] == 'server' and plain['bytes up'] == 4 * 650 + 25
  assert plain['law'] == 'ideal noise (float32 simulation)' and noisy['law'] == 'exact (integers)'
  assert noisy['bits'] == 14 and noisy['bytes up'] == 25 + PADDED * 14 // 8
  assert all(19.9 < x.epsilon <= 20.0 for x in entries)
  lines = (tmp_path / 'distributed_dp.csv').read_text().splitlines()
  assert lines[0].startswith('noise,law,bits,epsilon,bytes up,accuracy') and len(lines) == 3
  assert (tmp_path / 'distributed_dp.png').read_bytes()

  def must_not(*args, **options):
    raise RuntimeError('it was run again')

  monkeypatch.setattr(cells, 'run', must_not)
  options['bits'] = [14]  # 4 bits are tried anew: there is nothing to be found
  assert table_distributed.distributed_dp(base, tmp_path, **options) == entries


def test_bad_input_of_the_table(masked, make, tmp_path):
  wrong = table_distributed.distributed_dp
  with pytest.raises(ValueError, match='one stage distributed, without noise_multiplier'):
    wrong(make(), tmp_path)
  with pytest.raises(ValueError, match='one stage distributed, without noise_multiplier'):
    wrong(masked(noise_multiplier=1.0), tmp_path)
  with pytest.raises(ValueError, match='bits must be at least one'):
    wrong(masked(), tmp_path, bits=())
  with pytest.raises(ValueError, match='epsilons must be a finite number > 0, got -1'):
    wrong(masked(), tmp_path, epsilons=(-1,))


def test_the_command_takes_the_defaults_of_the_table(monkeypatch, capsys, tmp_path):
  seen = {}

  def fake(base, out, **options):
    seen.update(options, name=base.name, out=out)
    return [table_distributed.Entry(2.0, None, 2.0, 100.0, [0.5])]

  monkeypatch.setattr(table_distributed, 'distributed_dp', fake)
  assert cli.main(['table', 'distributed_dp', '--out', str(tmp_path)]) == 0
  assert seen == {
    'name': 'digits_secagg',
    'out': tmp_path,
    'epsilons': table_distributed.EPSILONS,
    'bits': table_distributed.BITS,
    'seeds': (0,),
    'rounds': None,
    'data_dir': None,
  }
  assert 'server' in capsys.readouterr().out
