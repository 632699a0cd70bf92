"""The secret of a client's noise: fresh, one root a release, shown and copied nowhere."""

import copy
import itertools
import pickle

import numpy as np
import pytest

from fedjax_mem.core import keys
from fedjax_mem.federated.secret import REPEATABLE, NoiseSecret


def roots(secret, count=4):
  return [tuple(secret.root(i).tolist()) for i in range(count)]


def test_every_release_of_every_secret_has_a_root_of_its_own():
  secrets = [NoiseSecret() for _ in range(50)] + [NoiseSecret(seed) for seed in range(50)]
  found = list(itertools.chain(*map(roots, secrets)))
  assert len(set(found)) == len(found)
  one = NoiseSecret()
  assert roots(one) == roots(one)
  assert one.root(0).dtype == np.uint32 and one.root(0).shape == (2,)


def test_roots_have_64_bits():
  bits = np.unpackbits(np.array(roots(NoiseSecret(), 2000), np.uint32).view(np.uint8), axis=1)
  assert (np.abs(bits.mean(0) - 0.5) < 5 * 0.5 / np.sqrt(2000)).all()


def test_only_a_seed_repeats_and_says_so():
  assert roots(NoiseSecret(7)) == roots(NoiseSecret(7)) != roots(NoiseSecret(8))
  assert NoiseSecret(7).notes == (REPEATABLE,) and NoiseSecret().notes == ()
  # No root is one that the engine makes of the same seed.
  assert tuple(np.asarray(keys.open_root(7)).tolist()) not in roots(NoiseSecret(7), 100)


@pytest.mark.parametrize('seed', [-1, 2**32, 1.0, True, '7'])
def test_seeds_out_of_range_are_refused(seed):
  with pytest.raises(ValueError, match='noise_seed must be'):
    NoiseSecret(seed)


def test_it_is_neither_shown_nor_copied():
  secret = NoiseSecret()
  assert repr(secret) == 'NoiseSecret()' and str(NoiseSecret(7)) == f'NoiseSecret({REPEATABLE})'
  for way in (copy.copy, copy.deepcopy, pickle.dumps):
    with pytest.raises(TypeError, match='must stay where it is'):
      way(secret)
