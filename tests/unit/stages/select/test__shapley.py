"""Shapley values against their definition by permutations, and the axioms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.stages.select import _shapley as shapley

N = 5
rng = np.random.default_rng(0)
TABLE = rng.normal(size=2**N)
TABLE[0] = 0.3


def game(table=TABLE):
  """Returns the value function of a table by subsets (bit i: client i)."""
  held = jnp.asarray(table, jnp.float32)
  number = int(np.log2(len(table)))
  bits = 2 ** jnp.arange(number, dtype=jnp.int32)[None, :]
  return lambda masks: held[jnp.where(masks, bits, 0).sum(1)]


def by_permutations(table, number):
  """Returns the mean gain of each client over all orders of arrival."""
  total = np.zeros(number)
  orders = list(itertools.permutations(range(number)))
  for order in orders:
    here = 0
    for i in order:
      total[i] += table[here | 1 << i] - table[here]
      here |= 1 << i
  return total / len(orders)


@pytest.mark.first(1)
@pytest.mark.parametrize('number', (1, 2, 5, 7))
def test_exact_values_are_those_of_all_orders(number):
  table = np.random.default_rng(number).normal(size=2**number)
  got = shapley.exact(game(table), number)
  np.testing.assert_allclose(got, by_permutations(table, number), atol=2e-6)
  assert float(got.sum()) == pytest.approx(table[-1] - table[0], abs=2e-6)  # efficiency


def test_eight_clients_are_efficient_symmetric_and_a_null_player_gets_nothing():
  number = 8
  members = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
  # Client 7 changes nothing, 0 and 1 are alike.
  size = members[:, :2].sum(1)
  table = np.sin(size) + members[:, 2:7] @ np.arange(5.0) + size * members[:, 3]
  got = np.asarray(shapley.exact(game(table), number))
  assert got.sum() == pytest.approx(table[-1] - table[0], abs=1e-5)
  assert got[0] == pytest.approx(got[1], abs=1e-5) and got[7] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_an_additive_game_gives_each_client_its_own():
  worth = np.array([1.0, -2, 0.5, 3, 0])
  members = (np.arange(32)[:, None] >> np.arange(5)) & 1
  table = members @ worth
  np.testing.assert_allclose(shapley.exact(game(table), 5), worth, atol=1e-6)
  np.testing.assert_allclose(shapley.leave_one_out(game(table), 5), worth, atol=1e-6)
  got, _ = shapley.gtg(game(table), 5, jax.random.key(0), 1, 0.0)
  np.testing.assert_allclose(got, worth, atol=1e-6)


def test_leaving_one_out():
  expected = [TABLE[31] - TABLE[31 ^ 1 << i] for i in range(N)]
  np.testing.assert_allclose(shapley.leave_one_out(game(), N), expected, atol=1e-6)


def test_guided_permutations_are_unbiased_and_efficient():
  keys = jax.random.split(jax.random.key(1), 3000)
  run = jax.jit(jax.vmap(lambda key: shapley.gtg(game(), N, key, 1, 0.0)))
  got, evaluations = map(np.asarray, run(keys))
  np.testing.assert_allclose(got.sum(1), TABLE[-1] - TABLE[0], atol=1e-5)
  z = (got.mean(0) - by_permutations(TABLE, N)) / (got.std(0) / np.sqrt(len(keys)))
  assert np.abs(z).max() < 4.5
  assert (evaluations == 2 + N * (N - 1)).all()


def test_every_client_leads_equally_often():
  # A game in which only the first of an arrival gains: its values say who led.
  table = (np.arange(2**N) > 0).astype(float)
  got, _ = shapley.gtg(game(table), N, jax.random.key(2), 3, 0.0)
  np.testing.assert_allclose(got, 1 / N, atol=1e-6)


def test_a_round_that_gains_nothing_ends_at_once():
  table = TABLE.copy()
  table[-1] = table[0] + 5e-4
  got, evaluations = shapley.gtg(game(table), N, jax.random.key(0), 2, 1e-3)
  assert not np.asarray(got).any() and int(evaluations) == 2


def test_a_line_near_the_whole_gains_nothing_more():
  # Two clients make the whole value, up to what is truncated; then no more subsets are evaluated.
  size = ((np.arange(2**N)[:, None] >> np.arange(N)) & 1).sum(1)
  table = np.minimum(size, 2) + 1e-4 * size
  got, evaluations = shapley.gtg(game(table), N, jax.random.key(0), 2, 1e-2)
  assert int(evaluations) == 2 + 2 * 2 * N
  assert float(got.sum()) == pytest.approx(2 + 2e-4, abs=1e-5)  # not the last 3e-4


@pytest.mark.slow
def test_without_truncation_a_chance_meeting_does_not_end_a_line():
  table = TABLE.copy()
  for i in range(N):
    table[1 << i] = table[-1]  # everyone alone is worth as much as all
  got = shapley.gtg(game(table), N, jax.random.key(0), 200, 0.0)[0]
  np.testing.assert_allclose(got, by_permutations(table, N), atol=0.15)
  assert np.abs(np.asarray(got) - (table[-1] - table[0]) / N).max() > 0.2  # what an end would give
