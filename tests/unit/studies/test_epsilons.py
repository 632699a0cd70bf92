"""Epsilon of published settings."""

import pytest

from fedjax_mem.studies import epsilons


@pytest.mark.slow
def test_ours_is_what_was_published_and_pld_is_below(tmp_path):
  lines = epsilons.rows()
  assert len(lines) == len(epsilons.SETTINGS)
  for x, line in zip(epsilons.SETTINGS, lines, strict=True):
    assert line['PLD'] < line['RDP'] <= x.published * (1 + 1e-4)
    if 'RDP' in x.source:
      assert line['RDP'] == pytest.approx(x.published, abs=1e-4)
  pld = [line['PLD'] for line in lines if 'RDP' in line['source']]
  assert pld == pytest.approx([1.7075, 2.3817, 6.1877, 6.5730], abs=2e-4)
  files = epsilons.write(lines, tmp_path)
  assert {x.suffix for x in files} == {'.md', '.csv', '.tex', '.bib'}


def test_moments_accountants_of_2016_are_reproduced_by_their_own_bound():
  """Abadi et al.: epsilon = min over orders of RDP + log(1 / delta) / (order - 1)."""
  import math

  import dp_accounting
  from dp_accounting.rdp import rdp_privacy_accountant

  for x in epsilons.SETTINGS:
    if 'moments' not in x.source:
      continue
    accountant = rdp_privacy_accountant.RdpAccountant(orders=[1 + i / 10 for i in range(1, 640)])
    noise = dp_accounting.GaussianDpEvent(x.noise_multiplier)
    rate = x.sampled / x.population
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, noise), x.rounds)
    pairs = zip(accountant._orders, accountant._rdp, strict=True)
    bound = min(rdp + math.log(1 / x.delta) / (order - 1) for order, rdp in pairs)
    assert bound == pytest.approx(x.published, abs=0.015)
