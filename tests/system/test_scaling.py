"""The benchmarks of scale in their small form, and what they make of what they measure."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiling

from benchmarks import scale_limits, scale_plots, scale_point, scale_runs
from fedjax_mem.kernels.loops import across


@pytest.mark.slow
@pytest.mark.parametrize('name', scale_runs.PARTS)
def test_a_part_runs_in_its_small_form(name, tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(compiling.cache_folder()))
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # as tests compile
  scale_runs.run([name], tmp_path, small=True)
  (found,) = scale_plots.load(tmp_path).values()
  wanted = [(x.series, x.x) for x in scale_runs.PARTS[name](True)]
  assert [(x['series'], x['x']) for x in found['points']] == wanted
  for row in found['points'][0].get('rows', []):  # of limits
    exact = row['part'] in ('population', 'client states', 'sum: sent', 'stream buffer')
    low, high = (1, 1) if exact else (0.8, 2.6)
    assert low <= row['measured'] / row['formula'] <= high, row


@pytest.mark.slow
def test_tables_and_pictures_are_made_of_what_was_measured(tmp_path):
  page = tmp_path / 'page.md'
  names = ('growth', 'machines', 'sums', 'limits', 'secure')
  page.write_text('\n'.join(f'<!-- {x}: begin -->\nold\n<!-- {x}: end -->' for x in names))
  scale_plots.show(scale_runs.RESULTS, tmp_path, page)
  made = page.read_text()
  assert 'old' not in made and '| W3 | divided |' in made and '| client states |' in made
  assert len(list(tmp_path.glob('scaling-*.png'))) == 3


def test_the_page_has_what_was_measured():
  text = scale_plots.PAGE.read_text('utf-8')
  made = scale_plots.tables(scale_plots.load(scale_runs.RESULTS))
  assert scale_plots.render(text, made) == text
  for name in re.findall(r'\.\./assets/(scaling-\w+\.png)', text):
    assert (scale_plots.ASSETS / name).exists()


def test_a_page_without_a_place_for_a_table_is_refused():
  with pytest.raises(ValueError, match='the page must have the lines'):
    scale_plots.render('nothing', {'sums': 'table'})


def test_what_a_device_sends_is_read_from_its_program():
  # Two slices of 5, 1 kept; 3 of 4 parts of a gathered vector; a result that is used is no message.
  program = """
    %a = (f32[1,5]{1,0}, /*index=1*/f32[1,5]{1,0}) all-to-all(%x, %y), channel_id=1
    %b = f32[1,5]{1,0} get-tuple-element(%all-to-all), index=0
  """
  assert scale_limits.sent(program, 2) == 4 * 5
  assert scale_limits.sent('  ROOT %g = f32[4,10]{1,0} all-gather(%v), dimensions={0}', 4) == 4 * 30


def test_efficiency_and_ratios_are_of_turns():
  took = iter([2.0, 2.0, 4.0, 8.0, 5.0, 10.0])
  points = [
    {'series': 'W3' + kind, 'x': x, 'spec': {'work': 'W3'}, 'median_s': next(took)}
    for _ in range(2)
    for kind, x in (('', 1), ('', 2), (' divided', 2))
  ]
  found = scale_plots.efficiency({'points': points})
  assert found['W3', 'whole'] == (1.0, 1.3, 1.6)  # 2 / 2 and 8 / 5
  assert found['W3', 'divided'] == pytest.approx((0.5, 0.65, 0.8))
  assert scale_point.ratio(np.array([2.0, 3.0, 4.0]), np.array([1.0, 1.0, 2.0]))[1] == 2


def test_sums_are_taken_as_named_and_only_there():
  before, one = across.joined, jnp.ones((1, 3))
  with scale_point.summed('none'):
    assert across.total({'a': one}, 'clients')['a'].tolist() == one.tolist()
  assert across.joined is before is scale_point.SUMS['in order']


def test_size_in_words():
  assert [scale_plots.size(x) for x in (12, 47_600_000, 3.2e9, 555_200)] == [
    '12 B', '47.6 MB', '3.2 GB', '555 kB'
  ]  # fmt: skip


def test_every_point_is_one_that_a_process_takes():
  for part in scale_runs.PARTS.values():
    for small in (False, True):
      for point in part(small):
        spec = scale_point.Spec(**json.loads(json.dumps(point.spec)))
        assert spec.kind in ('rounds', 'sums', *scale_limits.MEASURED)
        assert scale_point.described(spec).cohort <= scale_point.described(spec).num_clients
