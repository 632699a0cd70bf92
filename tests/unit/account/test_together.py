"""Epsilon of several runs together: against dp-accounting's own composition."""

import dp_accounting
import pytest
from dp_accounting import rdp

from fedjax_mem.account import claim, together
from fedjax_mem.core import Draws, IncompatibleStages
from fedjax_mem.mechanisms import Gaussian, Laplace

POISSON = Draws('poisson', population=1000, expected=50, capacity=1000)


def made(multiplier, sampling=POISSON, accountant='rdp', rounds=40):
  return claim(sampling, Gaussian(multiplier), rounds=rounds, delta=1e-5, accountant=accountant)


@pytest.mark.slow
def test_runs_of_one_kind_compose_as_one_long_run():
  one = made(1.0)
  wanted = one.guarantee(120, 1e-5)
  found = together([(one, 40)] * 3, 1e-5)
  assert found.rounds == 120 and found.epsilon <= wanted.epsilon * (1 + 1e-9)
  assert found.epsilon > one.guarantee(40, 1e-5).epsilon


@pytest.mark.slow
def test_other_noise_composes_as_the_library_composes_it():
  several = [(made(1.0 + i / 4), 30 + i) for i in range(6)]  # more kinds than PLD is asked for
  library = rdp.RdpAccountant()
  for i, (_, rounds) in enumerate(several):
    event = dp_accounting.GaussianDpEvent(1.0 + i / 4)
    library.compose(dp_accounting.PoissonSampledDpEvent(0.05, event), rounds)
  found = together(several, 1e-5)
  assert found.accountant == 'RDP'
  assert found.epsilon == pytest.approx(library.get_epsilon(1e-5), rel=1e-3)


@pytest.mark.slow
def test_gaussians_without_sampling_add_by_their_inverse_squares():
  rounds = {0.5: 2, 2.0: 5}
  several = [(claim(None, Gaussian(z), rounds=n, delta=1e-5), n) for z, n in rounds.items()]
  joint = sum(n / z**2 for z, n in rounds.items()) ** -0.5 / 2  # replace-one moves the sum twice
  found = together(several, 1e-5)
  if found.adjacency != 'replace_one':
    joint *= 2
  exact = dp_accounting.get_epsilon_gaussian(joint, 1e-5)
  assert exact * (1 - 1e-6) <= found.epsilon < exact * 1.01


def test_what_does_not_compose_is_refused():
  one = made(1.0)
  with pytest.raises(ValueError, match='at least one round'):
    together([(one, 0)], 1e-5)
  local = claim(None, Laplace(5.0), rounds=4, delta=1e-5)
  with pytest.raises(IncompatibleStages, match='one adjacency, unit and trust'):
    together([(one, 4), (local, 4)], 1e-5)
