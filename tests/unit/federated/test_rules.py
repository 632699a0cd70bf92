"""Robust rules over objects: what the engine gives, and rounds that are skipped."""

import jax
import numpy as np
import pytest
from reference.objects import client, loop, server

from fedjax_mem.federated import (
  AggregationStrategy,
  NotEnoughClients,
  simulate_federation,
)

RULES = {
  'MEDIAN': {},
  'TRIMMED_MEAN': {'byzantine': 1},
  'GEOMETRIC_MEDIAN': {},
  'KRUM': {'byzantine': 1},
  'MULTI_KRUM': {'byzantine': 1},
  'BULYAN': {'byzantine': 1},
  'CENTERED_CLIPPING': {'radius': 0.01},
  'NORM_BOUNDING': {'l2_clip_norm': 0.5},
  'DNC': {'byzantine': 1},
  'SIGNGUARD': {},
}


def test_every_robust_strategy_is_tried():
  assert {x.name for x in AggregationStrategy if x.robust} == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(RULES))
def test_robust_rules_give_what_the_engine_gives(name):
  made = server(aggregation=AggregationStrategy[name], options=RULES[name], max_clients=7)
  clients = [client(i) for i in range(7)]
  result = simulate_federation(made, clients, rounds=2)
  by_loop = loop(made, clients, rounds=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    result.model.params,
    by_loop,
  )


@pytest.mark.slow
def test_a_rule_without_enough_clients_skips_the_round():
  made = server(aggregation=AggregationStrategy.KRUM, options={'byzantine': 1})
  before = jax.tree.map(np.array, made.get_global_model().params)
  with pytest.raises(NotEnoughClients, match=r'krum.*C >= 2f \+ 3 with f = 1, got 3'):
    loop(made, [client(i) for i in range(3)], rounds=1)
  jax.tree.map(np.testing.assert_array_equal, made.get_global_model().params, before)
