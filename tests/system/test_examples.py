"""The examples of methods of one's own: right, usable both ways, and resumed.

The contract suite has them among its cases.
"""

import functools
import os
import re
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny, twins
from reference.experiments import TINY
from scipy import stats

import fedjax_mem as fm
from fedjax_mem.config.load import load_config
from fedjax_mem.core import Bound, compose
from fedjax_mem.report.runs import read_metrics
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.loop import resume, run
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

ROOT = Path(__file__).parents[2]
HERE = ROOT / 'scripts' / 'examples'
# The tiny experiment, for methods of one's own.
TEXT = (
  TINY.replace("'tiny'", "'own'").replace('batch_size = 20', 'batch_size = 40\nlearning_rate = 0.2')
  + """
max_segment_rounds = 2
checkpoint_every_seconds = 0
"""
)
KNORM = (
  'stages=[{use="central", options={l2_clip_norm=0.5, noise_multiplier=2.0, '
  'mechanism="knorm:KNorm"}}]'
)
EXAMPLES = {
  'fedsam': ('algorithm.name=fedsam:fedsam', 'algorithm.options={rho=0.1}'),
  'meamed': ('stages=[{use="meamed:meamed", options={byzantine=1}}]',),
  'stratified': ('selection.name=stratified:stratified', 'selection.options={strata=4}'),
  'knorm': (
    *(KNORM, 'weighting.name=equal', 'weighting.options={divisor=4}'),
    *('privacy.delta=1e-3', 'noise_seed=0'),  # two runs are compared
  ),
  'one_bit': ('stages=[{use="one_bit:one_bit"}]',),
}
UPDATES = {'a': np.random.default_rng(1).normal(size=(7, 5, 2)).astype(np.float32)}


@pytest.fixture(scope='module', autouse=True)
def own():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(HERE))
    known = os.environ.get('PYTHONPATH')
    patch.setenv('PYTHONPATH', os.pathsep.join([str(HERE), *([known] if known else [])]))
    yield


@pytest.fixture
def make(tmp_path):
  (tmp_path / 'own.toml').write_text(TEXT)
  return lambda name: load_config(tmp_path / 'own.toml', EXAMPLES[name])


# Each is what it says.


@pytest.mark.slow
def test_fedsam_is_its_numpy_twin_and_short():
  import fedsam

  made = fedsam.fedsam(tiny.loss, learning_rate=0.3, batch_size=3, epochs=2, rho=0.7)
  sim = tiny.build(compose(made, round_robin(tiny.N, tiny.N), fm.stages.weigh.by_examples()))
  state, _ = tiny.execute(sim, 1)
  ended = []
  for data in tiny.DATA:
    v = twins.START
    for at in [*range(0, len(data['y']), 3)] * 2:
      of = lambda p, x=data['x'][at : at + 3], y=data['y'][at : at + 3]: twins.gradient(p, x, y)
      v = v - 0.3 * of(v + 0.7 * of(v) / np.linalg.norm(of(v)))
    ended.append(v)
  expected = np.average(ended, 0, tiny.COUNTS)
  np.testing.assert_allclose(tiny.vec(state.params), expected, atol=1e-5)
  code = (HERE / 'fedsam.py').read_text().partition('def fedsam')[2]
  lines = [x for x in code.splitlines()[1:] if x.strip() and not x.strip().startswith('"""')]
  assert len(lines) + 1 <= 20


@pytest.mark.slow
def test_meamed_is_its_numpy_twin():
  import meamed

  x = UPDATES['a'].reshape(7, -1).astype(np.float64)
  x[6] = 1e6
  near = np.abs(x - np.median(x, 0)).argsort(0, kind='stable')[:5]
  expected = np.take_along_axis(x, near, 0).mean(0)
  sim = given.build(UPDATES, meamed.meamed(2), select=round_robin(7, 7), weigh=equal())
  updates = {'a': UPDATES['a'].copy()}
  updates['a'][6] = 1e6
  np.testing.assert_allclose(given.sums(sim, updates=updates)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_stratified_cohort_has_as_many_of_each_and_everyone_alike():
  import stratified

  layer = stratified.stratified(12, 6, 3)
  ctx = lambda i: fm.Context(jax.random.fold_in(jax.random.key(0), i), *[None] * 7)
  draw = jax.vmap(lambda i: layer.select.apply(ctx(i), fm.Draw(None, None), ())[0].cohort.id)
  ids = np.asarray(draw(jnp.arange(2000)))
  assert all((np.bincount(row % 3, minlength=3) == 2).all() for row in ids)
  assert all(len(set(row)) == 6 for row in ids)
  assert stats.chisquare(np.bincount(ids.ravel(), minlength=12)).pvalue > 1e-3


@pytest.mark.slow
def test_k_norm_noise_has_its_length_and_no_other():
  import knorm

  made, bound = knorm.KNorm(1.5), Bound(l2=0.5)
  like = {'a': jnp.zeros((3, 2)), 'b': jnp.zeros(4)}
  one = lambda key: made.draw(key, like, bound, ())[0]
  rows = jax.vmap(one)(jax.random.split(jax.random.key(0), 4000))
  x = np.concatenate([np.asarray(v).reshape(4000, -1) for v in jax.tree.leaves(rows)], 1)
  length = np.linalg.norm(x, axis=1)
  assert stats.kstest(length, stats.gamma(10, scale=0.75).cdf).pvalue > 1e-3
  for wrong in (2 / 3, 3 / 2):
    assert stats.kstest(length, stats.gamma(10, scale=0.75 * wrong).cdf).pvalue < 1e-12
  assert np.abs((x / length[:, None]).mean(0)).max() < 5 / np.sqrt(4000 * 10)
  epsilon = fm.account.epsilon(None, made, 1, 1e-9).epsilon
  assert epsilon == pytest.approx(2 / 1.5, rel=0.02)  # pure


@pytest.mark.slow
def test_one_bit_is_its_numpy_twin_with_what_it_remembers():
  import one_bit

  sim = given.build(UPDATES, one_bit.one_bit(), select=round_robin(7, 7))
  sent, memory = given.sums(sim, 3), np.zeros((7, 10))
  for got in sent:
    whole = UPDATES['a'].reshape(7, -1).astype(np.float64) + memory
    up = whole > 0
    mean = lambda on, x=whole: (np.where(on, x, 0).sum(1) / np.maximum(on.sum(1), 1))[:, None]
    coded = np.where(up, mean(up), mean(~up))
    memory = whole - coded
    np.testing.assert_allclose(got, coded.sum(0), rtol=1e-4, atol=1e-4)


# From Python and from a configuration.


@pytest.mark.slow
def test_all_work_from_python():
  import fedsam
  import knorm
  import meamed
  import one_bit
  import stratified

  sam = fedsam.fedsam(tiny.loss, learning_rate=0.1, batch_size=4)
  draw = stratified.stratified(tiny.N, tiny.C, 2)
  noise = privacy.central(0.5, 1.0, mechanism=knorm.KNorm)
  for layers in (
    (sam, draw, equal(), one_bit.one_bit()),
    (sam, draw, equal(), meamed.meamed(1)),
    (sam, draw, equal(6.0), noise),
  ):
    sim = tiny.build(compose(*layers), expect_privacy=layers[-1] is noise)
    _, metrics = sim.run(sim.init(tiny.initial()), 2)
    assert metrics['finite'].all()


class Killed(BaseException):
  """Ends a run as a kill does: nothing is tidied up."""


@functools.cache
def _save():
  return Checkpoints.save


@pytest.mark.slow
@pytest.mark.parametrize('name', EXAMPLES)
def test_each_is_resumed_from_a_configuration_bit_for_bit(make, name, tmp_path, undrawn):
  whole = run(make(name), tmp_path / 'whole', quiet=True)
  assert whole.metrics[-1]['test_accuracy'] > 0.3 or name == 'knorm'

  def dies(self, state):
    if int(state.round) >= 4:
      raise Killed
    return _save()(self, state)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    _save()
    patch.setattr(Checkpoints, 'save', dies)
    run(make(name), tmp_path / 'killed', quiet=True)
  (folder,) = (tmp_path / 'killed').iterdir()
  again = resume(folder, quiet=True)
  tiny.assert_same_bits(again.params, whole.params)
  if name == 'knorm':
    assert 0 < again.metrics[-1]['epsilon'] == whole.metrics[-1]['epsilon']


@pytest.mark.slow
def test_a_run_of_ones_own_methods_outlives_kill_9(start, tmp_path):
  (tmp_path / 'own.toml').write_text(TEXT)
  both = [*EXAMPLES['fedsam'], *EXAMPLES['stratified'], *EXAMPLES['knorm'], 'client.epochs=30']
  sets = [x for s in both for x in ('--set', s)]
  words = lambda out: ('run', tmp_path / 'own.toml', '--out', tmp_path / out, '--quiet', *sets)
  whole, killed = start(*words('whole')), start(*words('killed'))
  for _ in range(12_000):
    found = list((tmp_path / 'killed').glob('own-*/metrics.jsonl'))
    if found and found[0].read_bytes().count(b'\n') >= 2:
      break
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert whole.wait() == 0
  (folder,) = (tmp_path / 'killed').glob('own-*')
  again = start('resume', folder, '--quiet')
  _, said = again.communicate()
  assert again.returncode == 0, said
  (reference,) = (tmp_path / 'whole').glob('own-*')
  assert (folder / 'ledger.json').read_bytes() == (reference / 'ledger.json').read_bytes()
  a, b = (read_metrics(x / 'metrics.jsonl') for x in (folder, reference))
  timeless = lambda rows: [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]
  assert len(a) == 6 and timeless(a) == timeless(b)


@pytest.mark.slow
def test_the_page_on_methods_of_ones_own_runs(capsys):
  page = (ROOT / 'docs' / 'methods.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', page, re.S)
  names: dict = {}
  for block in blocks:
    exec(block, names)
  printed = capsys.readouterr().out
  assert printed.startswith('[10.5]\n[2.]\n[11.5]\n')
  assert "'halve'" in printed and 'states no bound' in printed and 'after 100 rounds' in printed
  assert names['bound'].l2 == pytest.approx(0.25, rel=1e-5) and names['spent'].epsilon < 20
