"""The ten works: what they count, write and draw; and the table that is made of their figures."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import examples, flops, measure, rounds, serve, table, works
from fedjax_mem import models
from fedjax_mem.engine import Execution
from fedjax_mem.models import transformer

FIRST = {
  'model', 'num_clients', 'examples', 'cohort', 'epochs', 'batch_size', 'learning_rate', 'momentum',
  'forward_mflop', 'accuracy', 'privacy',
}  # fmt: skip


def products(jaxpr, times=1):
  """Returns the operations of all matrix products of a jaxpr, loops included."""
  total = 0
  for eqn in jaxpr.eqns:
    inner = times * eqn.params.get('length', 1)
    for value in eqn.params.values():
      if hasattr(value, 'jaxpr'):
        total += products(value.jaxpr, inner)
    if eqn.primitive.name == 'dot_general':
      ((contracted, _), _) = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      total += 2 * times * math.prod(eqn.outvars[0].aval.shape) * depth
  return total


@pytest.mark.parametrize('name, shape', [('W3', (28, 28, 1)), ('M1', (784,)), ('T1', (128,))])
def test_counted_operations_are_those_of_the_products(monkeypatch, name, shape):
  monkeypatch.setattr(transformer, '_QUERIES', 128)  # all scores, also those of later positions
  work = works.WORKS[name]
  classes = examples.VOCABULARY if name == 'T1' else 10
  model = models.build(work.model, shape, classes)
  params = jax.eval_shape(model.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((1, *shape), jnp.int32 if name == 'T1' else jnp.float32)
  counted = products(jax.make_jaxpr(model.apply)(params, x).jaxpr) / 1e6
  embedding = flops.dense(90, 128) * 128 if name == 'T1' else 0  # a look-up, done as a product
  assert work.forward_mflop == pytest.approx(counted - embedding, rel=1e-12)


def test_counted_operations_by_hand():
  # The multiplications of ResNet-18 on CIFAR as commonly reported: 0.56 * 10**9.
  assert flops.resnet(32, 3, 64, (2, 2, 2, 2), 10) / 2 == pytest.approx(555.4, abs=0.1)
  # 8 + 256 and 256 + 256 inputs of 1,024 gates, 256 of 90 logits; 80 times.
  lstm = 80 * 2 * (264 * 1024 + 512 * 1024 + 256 * 90) / 1e6
  assert works.WORKS['L1'].forward_mflop == pytest.approx(lstm)
  assert works.WORKS['W1'].gflop == pytest.approx(216, abs=0.2)
  assert works.WORKS['D1'].samples == 8 * 3 * 20


def test_later_fields_are_written_only_where_they_are_used():
  for name in ('W1', 'W2', 'W3', 'W4', 'M1'):
    assert set(works.WORKS[name].written()) == FIRST
  assert set(works.WORKS['D1'].written()) == FIRST | {'dp_sgd'}
  assert set(works.WORKS['E1'].written()) == FIRST | {'feedback'}
  assert works.WORKS['L1'].written()['data'] == 'tokens_80'


@pytest.mark.parametrize('name', ['L1', 'D1', 'E1'])
def test_a_work_survives_its_folder(tmp_path, name):
  x, y, test_x, test_y = examples.load('tokens_80', 20, None)
  if name != 'L1':
    x, test_x = np.zeros((20, 28, 28), np.uint8), np.zeros((5, 28, 28), np.uint8)
    y, test_y = np.zeros(20, np.int32), np.zeros(5, np.int32)
  work = dataclasses.replace(works.WORKS[name], num_clients=4, examples=5)
  written = works.federate(work, x, y, test_x, test_y)
  rounds.write(tmp_path, work, written)
  again, read = serve.load(tmp_path)
  assert again == work
  assert read.preprocess == written.preprocess and read.num_classes == written.num_classes
  parts = [(d.arrays, d.test, d.index, d.offsets) for d in (read, written)]
  jax.tree.map(np.testing.assert_array_equal, *parts)


def test_tokens_follow_their_chain():
  rows = examples.sequences(300, 60, seed=3)
  assert rows.shape == (300, 60) and rows.dtype == np.uint8
  assert rows.min() >= 1 and rows.max() == examples.VOCABULARY - 1
  np.testing.assert_array_equal(rows, examples.sequences(300, 60, seed=3))
  assert (rows != examples.sequences(300, 60, seed=4)).any()
  # Who guesses the commonest successor of the last token is right on half of them, at least.
  pairs = np.zeros((90, 90))
  np.add.at(pairs, (rows[:, 1:-1].ravel(), rows[:, 2:].ravel()), 1)
  assert 0.5 < pairs.max(1).sum() / pairs.sum() < 0.75
  triples = np.zeros((90, 90, 90))
  np.add.at(triples, tuple(rows[:, i : i + 58].ravel() for i in range(3)), 1)
  often = triples.sum(2) >= 20
  two = np.sort(triples[often], axis=1)[:, -2:].sum()
  assert two / triples[often].sum() > 0.78


def line(name, ours, **peers):
  """Returns the line of a work, with the seconds of its sides."""
  side = lambda who, s: {
    'versions': {who: '1'}, 'median_s': s, 'peak_mb': 500, 'accuracy': 0.5, 'loss': 1.0,
  }  # fmt: skip
  return {
    'work': name, 'date': '2026-01-02', 'cpu': 'a cpu', 'cores': 2, 'vectors': 'none', 'load': 0.1,
    'python': '3.11', 'mfu': 0.25, 'gemm_peak_gflops': 100.0, 'first_cold_s': 4.5,
    'first_warm_s': 2.0,
    'sides': {'fedjax_mem': side('fedjax_mem', ours)} | {k: side(k, s) for k, s in peers.items()},
  }  # fmt: skip


def test_the_table_takes_the_best_peer_and_keeps_the_order():
  made = table.table([line('T1', 0.5, torch=1.25), line('W1', 0.002, torch=0.03, other=0.004)])
  head, _, first, second, empty, caption = made.splitlines()
  assert [cell.strip() for cell in first.split('|')[1:5]] == ['W1', '0.002', 'other: 0.004', '2.00']
  assert [cell.strip() for cell in second.split('|')[1:5]] == ['T1', '0.500', 'torch: 1.25', '2.50']
  assert head.count('|') == first.count('|') == second.count('|')
  assert 'a cpu' in caption and 'torch 1' in caption and not empty
  assert '(!)' not in made
  far = line('W1', 1.0, torch=1.0)
  far['sides']['torch']['loss'] = 1.3
  assert '(!)' in table.row(far)


def test_only_what_is_between_the_markers_is_replaced():
  page = f'a\n{table.BEGIN}\nold\n{table.END}\nz'
  once = table.render(page, 'new')
  assert once == f'a\n{table.BEGIN}\nnew\n{table.END}\nz' == table.render(once, 'new')
  with pytest.raises(ValueError, match='must have the lines'):
    table.render(f'a\n{table.BEGIN}\n', 'new')


def test_the_page_shows_what_was_measured():
  lines = [json.loads(path.read_text()) for path in table.RESULTS.glob('*.json')]
  page = table.README.read_text()
  assert table.render(page, table.table(lines)) == page
  front = table.FRONT.read_text()
  assert table.render(front, table.short(lines)) == front
  assert {x['work'] for x in lines} <= set(works.WORKS) == set(table.SAID)


def test_the_memory_of_children_counts():
  code = 'import subprocess, sys; x = bytearray(%d); %s; print(flush=True); sys.stdin.read()'
  child = f'p = subprocess.Popen([sys.executable, "-c", {code % (60_000_000, "pass")!r}], stdin=-1)'
  with subprocess.Popen(
    [sys.executable, '-c', code % (1, f'{child}')], stdin=-1, stdout=-1, env={**os.environ}
  ) as parent:
    parent.stdout.readline()
    parent.stdout.readline()
    both = measure.tree_peak_mb(parent.pid)
    parent.stdin.close()
  assert 60 < both < 300


@pytest.mark.slow
@pytest.mark.parametrize('name', ['L1', 'T1', 'D1', 'E1'])
def test_new_works_learn(name):
  if name in ('L1', 'T1'):
    x, y, test_x, test_y = examples.load(works.WORKS[name].data, 400, None)
    test_x, test_y = test_x[:40], test_y[:40]
  else:
    rng = np.random.default_rng(0)
    y, test_y = rng.integers(0, 10, 600).astype(np.int32), rng.integers(0, 10, 200).astype(np.int32)
    x, test_x = (rng.integers(0, 100, (len(v), 28, 28)).astype(np.uint8) for v in (y, test_y))
    for images, labels in ((x, y), (test_x, test_y)):
      images[np.arange(len(labels)), 2 * labels] += 155
  work = dataclasses.replace(works.WORKS[name], num_clients=10, cohort=2)
  data = works.federate(work, x, y, test_x, test_y)
  sim, model, params = serve.build(work, data, Execution(devices=1))
  before = serve.score(sim, model, data, params)
  # D1's noise is fresh in each run: the loss fell by 0.8 to 1.1% in 4 rounds, 1.6 to 2% in 8.
  rounds = {'D1': 6, 'E1': 4}.get(name, 3)
  state, _ = sim.run(sim.init(params), rounds)
  after = serve.score(sim, model, data, state.params)
  assert after['loss'] < (0.996 if name == 'D1' else 0.99) * before['loss']
