"""Every rule against its twin in float64, where squares leave float32: 1e-36 to 1e36."""

import jax
import numpy as np
import pytest
from reference import robust

from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages import aggregate as rules

C, F = 11, 2
SCALES = 10.0 ** np.array([-36, -30, -20, -12, 0, 12, 20, 30, 36])
TINY = float(np.finfo(np.float32).tiny)  # what is smaller may become 0
# What compares distances of pairs, beside the row in the middle; and what takes each row alone.
PAIRS = {
  'krum': (rules.krum(F), robust.krum(F)),
  'multi_krum': (rules.multi_krum(F), robust.multi_krum(F)),
  'bulyan': (rules.bulyan(F), robust.bulyan(F)),
  'dnc': (rules.dnc(F, iterations=1), robust.dnc(F)),
  'signguard': (rules.signguard(fraction=1.0), robust.signguard(0.1, 3.0)),
  'nnm': (rules.nnm(F), robust.nnm(F)),
}
ALONE = {
  'median': (rules.median(), robust.median),
  'trimmed_mean': (rules.trimmed_mean(F), robust.trimmed_mean(F)),
  'geometric_median': (rules.geometric_median(8), robust.geometric_median(8, 1e-6)),
  'smooth': (rules.geometric_median(8, 1e20), robust.geometric_median(8, 1e20)),
  'sharp': (rules.geometric_median(8, 1e-44), robust.geometric_median(8, 1.2e-38)),
  **{
    f'{name} {bound}': (rule(bound), twin(bound))
    for bound in (1e-30, 0.7, 1e30)
    for name, rule, twin in (
      ('norm_bounding', rules.norm_bounding, robust.norm_bounding),
      (
        'centered_clipping',
        lambda radius: rules.centered_clipping(radius, 3),
        lambda radius: lambda x, w: robust.centered_clipping(radius, 3, np.zeros(x.shape[1]))(x, w),
      ),
    )
  },
}


def _cohorts(size, each):
  """Yields stacks of updates [n, C, D], float32: scaled as a whole, or one row of them, or each."""
  normal = np.random.default_rng(3).normal(size=(C, size)) + 1
  lone = np.ones((len(SCALES), C, 1))
  lone[:, 4, 0] = SCALES
  made = [SCALES[:, None, None] * normal, lone * normal]
  if each:
    rows = 10.0 ** np.random.default_rng(4).permuted(
      np.linspace(-36, 36, C)[None].repeat(3, 0), axis=1
    )
    made.append(rows[:, :, None] * normal)
  for x in made:
    yield np.where(np.abs(x) < TINY, 0, x).astype(np.float32)


@pytest.mark.parametrize('size', [1, 64, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  'name',
  ['geometric_median', 'centered_clipping 0.7']
  + [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (*PAIRS, *ALONE)
    if name not in ('geometric_median', 'centered_clipping 0.7')
  ],
)
def test_a_rule_equals_its_twin_at_any_magnitude(name, size):
  layer, twin = (PAIRS | ALONE)[name]
  run = jax.jit(jax.vmap(lambda x: robust.given(layer, x)))
  for stack in _cohorts(size, name in ALONE):
    for x, found in zip(stack, np.asarray(run(stack), np.float64), strict=True):
      expected = twin(x.astype(np.float64), np.ones(C))
      # Nearly on one row, distances are differences of equal values.
      close = (3e-5 if name == 'sharp' else 4e-6) * np.abs(expected).max()
      np.testing.assert_allclose(found, expected, 0, close + C * TINY)


@pytest.mark.parametrize('size', [1, 64, 2000])
def test_norms_at_any_magnitude(size):
  x = np.concatenate(list(_cohorts(size, True))).reshape(-1, size)
  scaled, units = (np.asarray(v) for v in jax.jit(gram.norms)(x))
  norms = np.linalg.norm(x.astype(np.float64), axis=1)
  np.testing.assert_allclose(scaled.astype(np.float64) * 2.0**units, norms, rtol=1e-6)
