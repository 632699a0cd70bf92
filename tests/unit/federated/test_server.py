"""The server: who is let in, who is left out, and the same results as the compiled engine."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest
from reference.objects import MODEL, client, loop, server

from fedjax_mem.core import wire
from fedjax_mem.engine import Execution
from fedjax_mem.federated import (
  AggregationStrategy,
  ClientConfig,
  CompressionConfig,
  FederatedClient,
  NotEnoughClients,
  PrivacyBudgetExceeded,
  PrivacyConfig,
  SigningKey,
  inbox,
  recipe,
  simulate_federation,
)

ONE_BY_ONE = Execution(mode='loop', devices=1, pool=False)


def updates_of(made, clients):
  async def run():
    return [await x.train_round() for x in made.select_clients(clients)]

  return asyncio.run(run())


CASES = {
  'plain': {},
  'top_k': {'compression_config': CompressionConfig(compression_ratio=0.3)},
  'random_k': {'compression_config': CompressionConfig(method='random_k', compression_ratio=0.5)},
  # Noise is of each run's own: it is the same only where it is negligible.
  'private': {'privacy_config': PrivacyConfig(epsilon=1e17, noise_multiplier=1e-7)},
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_the_loop_gives_what_the_engine_gives(case):
  clients = [client(i, **CASES[case]) for i in range(4)]
  made = server(max_clients=3)
  found = simulate_federation(
    made, clients, execution=Execution(mode='loop', devices=1, pool=False)
  )
  params = loop(made, clients)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found.model.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
  if case == 'plain':
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found.model.params), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_clients_of_unequal_sizes_give_what_the_engine_gives():
  clients = [client(i, count=n) for i, n in enumerate((3, 14, 6, 9, 1))]
  made = server()
  found = simulate_federation(
    made, clients, execution=Execution(mode='loop', devices=1, pool=False)
  )
  params = loop(made, clients)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, params, found.model.params)


@pytest.mark.slow
def test_fedsgd_and_secure_aggregation():
  clients = [client(i) for i in range(3)]
  kind = AggregationStrategy.FEDERATED_SGD
  made = server(aggregation=kind)
  found = simulate_federation(made, clients)
  params = loop(made, clients)
  np.testing.assert_allclose(
    params['logits']['kernel'], found.model.params['logits']['kernel'], atol=1e-6
  )
  secure = server(aggregation=AggregationStrategy.SECURE_AGGREGATION)
  masked, plain = (
    loop(secure, [client(i) for i in range(3)]),
    loop(server(), [client(i) for i in range(3)]),
  )
  np.testing.assert_allclose(masked['logits']['kernel'], plain['logits']['kernel'], atol=1e-5)


@pytest.mark.slow
def test_alike_clients_compile_once():
  recipe.sides.cache_clear()
  clients = [client(i, count=5 + i % 3, learning_rate=0.07) for i in range(5)]
  made = server()
  updates_of(made, clients)
  assert recipe.sides.cache_info().currsize == 1
  assert clients[0].sides().client.__wrapped__._cache_size() == 1


@pytest.mark.slow
def test_values_on_the_wire_are_those_the_server_reads():
  quantized = CompressionConfig(method='quantization', quantization_bits=4)
  made, clients = server(), [client(i, compression_config=quantized) for i in range(2)]
  for sender, update in zip(clients, updates_of(made, clients), strict=True):
    read = inbox.decoded(sender, update, made._params(), made._place(sender)).message.update
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(update.values), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert update.metadata.bytes == len(update.data) < update.metadata.dense_bytes
    assert update.metadata.loss_after < update.metadata.loss_before


@pytest.mark.slow
def test_refused_before_they_are_decoded(monkeypatch):
  made, clients = server(min_clients=1), [client(i) for i in range(2)]
  good, other = updates_of(made, clients)
  forged = SigningKey()
  bad = {
    'unsigned': dataclasses.replace(good, signature=b''),
    'tampered': dataclasses.replace(good, data=good.data[:-1] + b'x'),
    'unknown': dataclasses.replace(good, client_id='../../etc/passwd'),
    'signature': dataclasses.replace(good, signature=forged.sign(good.statement)),
  }
  with monkeypatch.context() as patched:
    patched.setattr(wire, 'decode', lambda *a: pytest.fail('decoded'))
    for reason, update in bad.items():
      with pytest.raises(NotEnoughClients, match=reason):
        asyncio.run(made.aggregate([update]))
  assert made.round == 0
  report = asyncio.run(made.aggregate([good, good, other]))
  assert 'replayed' in report.left_out[good.client_id] and len(report.participants) == 2
  with pytest.raises(NotEnoughClients, match='stale'):
    asyncio.run(made.aggregate([good]))


def test_an_id_keeps_its_key():
  made = server(require_enrolled=True)
  one, other = client(0), client(0)
  with pytest.raises(ValueError, match='enrolled beforehand'):
    made.register(one)
  made.enrol(one.client_id, one.public_key)
  made.register(one)
  with pytest.raises(ValueError, match='another key'):
    made.register(other)
  with pytest.raises(ValueError, match='must be distinct'):
    server().select_clients([one, other])


class Hanging(FederatedClient):
  async def train_round(self):
    threading.Event().wait(30)


class Raising(FederatedClient):
  async def train_round(self):
    raise RuntimeError('battery')


class Garbage(FederatedClient):
  async def train_round(self):
    return 'garbage'


@pytest.mark.slow
def test_bad_clients_are_left_out_and_reported():
  made = server(client_timeout=5.0)
  kinds = {0: Hanging, 1: Raising, 2: Garbage}
  for i in range(5):
    made.register(client(i, kinds.get(i, FederatedClient)))
  report = asyncio.run(made.run_round())
  assert set(report.participants) == {'c3', 'c4'}
  assert 'no answer' in report.left_out['c0'] and 'battery' in report.left_out['c1']
  assert len(report.left_out) == 3


def test_too_few_change_nothing():
  made = server(min_clients=3)
  with pytest.raises(NotEnoughClients, match='registered'):
    asyncio.run(made.run_round())
  with pytest.raises(NotEnoughClients, match='got 2'):
    made.select_clients([client(0), client(1)])
  before = made.get_global_model().digest
  clients = [client(i) for i in range(3)]
  updates = updates_of(made, clients)
  with pytest.raises(NotEnoughClients):
    asyncio.run(made.aggregate(updates[:2]))
  assert made.get_global_model().digest == before and made.round == 0
  asyncio.run(made.aggregate(updates))
  assert made.round == 1


@pytest.mark.slow
def test_the_budget_of_a_client():
  alone = client(0, privacy_config=PrivacyConfig())
  asyncio.run(alone.train_round())
  with pytest.raises(PrivacyBudgetExceeded):
    asyncio.run(alone.train_round())
  made = server(rounds=3)
  loop(made, [client(i, privacy_config=PrivacyConfig()) for i in range(2)])
  assert 0.99 < made.privacy_accountant.epsilon <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['importance'])
def test_selection_by_what_clients_report(strategy):
  made = server(selection_strategy=strategy, max_clients=3, rounds=4)
  clients = [client(i) for i in range(5)]
  loop(made, clients, rounds=4)
  assert all(2 <= len(x.participants) <= 3 for x in made.reports)
  with pytest.raises(ValueError, match='random'):
    made.register(client(9, privacy_config=PrivacyConfig()))


def test_a_one_shot_generator_is_refused():
  batches = ((np.zeros((2, 4), np.float32), np.zeros(2, int)) for _ in range(2))
  with pytest.raises(ValueError, match='one-shot'):
    FederatedClient(ClientConfig(client_id='a'), MODEL, batches)
