"""Clients that do not behave: forged statements, lies, late answers; and rounds begun anew."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.core import tree
from fedjax_mem.federated import (
  AggregationStrategy,
  ClientConfig,
  CompressionConfig,
  FederatedClient,
  FederatedServer,
  Metadata,
  NotEnoughClients,
  PrivacyConfig,
  ServerConfig,
  compression,
)

MODEL = models.build('logistic', (4,), 3)
SECURE = AggregationStrategy.SECURE_AGGREGATION


def client(i, cls=FederatedClient, **options):
  rng = np.random.default_rng(i)
  x, y = rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8)
  given = {'local_epochs': 1, 'batch_size': 4, 'learning_rate': 0.1, **options}
  return cls(ClientConfig(client_id=f'c{i}', **given), MODEL, (x, y))


def server(**options):
  return FederatedServer(ServerConfig(**{'min_clients': 2, 'rounds': 3, **options}), MODEL)


def updates_of(chosen):
  async def run():
    return [await x.train_round() for x in chosen]

  return asyncio.run(run())


def refused(made, update):
  with pytest.raises(NotEnoughClients) as error:
    asyncio.run(made.aggregate([update]))
  assert made.round == 0
  return str(error.value)


@pytest.fixture(scope='module')
def one():
  made = server(min_clients=1)
  made.enrol('c1', client(1).public_key)
  (update,) = updates_of(made.select_clients([client(0)]))
  return made, update


@pytest.mark.slow
@pytest.mark.parametrize('field', Metadata._fields)
def test_every_field_of_the_metadata_is_signed(one, field):
  made, update = one
  said = getattr(update.metadata, field)
  other = (not said) if isinstance(said, bool) else said + 1
  forged = dataclasses.replace(update, metadata=update.metadata._replace(**{field: other}))
  assert 'tampered' in refused(made, forged)


OTHERS = {
  'run_id': 'f' * 32,
  'client_id': 'c1',
  'round': 1,
  'model_hash': bytes(32),
  'data': b'',
}


@pytest.mark.slow
@pytest.mark.parametrize('field', OTHERS)
def test_every_other_field_is_signed(one, field):
  made, update = one
  forged = dataclasses.replace(update, **{field: OTHERS[field]})
  assert 'tampered' in refused(made, forged)


MALFORMED = {
  'run_id': None,
  'client_id': ['c0'],
  'round': 2**70,
  'model_hash': 'text',
  'data': None,
  'signature': 'text',
  'metadata': None,
}


@pytest.mark.slow
@pytest.mark.parametrize('field', MALFORMED)
def test_fields_of_another_kind_are_refused(one, field):
  made, update = one
  text = refused(made, dataclasses.replace(update, **{field: MALFORMED[field]}))
  assert 'malformed' in text or 'tampered' in text


LIES = {'num_examples': 0, 'loss_before': float('nan'), 'norm': float('inf')}


@pytest.mark.parametrize('field', LIES)
def test_signed_lies_that_would_end_the_round_are_garbage(one, field):
  made, update = one
  lie = dataclasses.replace(update, metadata=update.metadata._replace(**{field: LIES[field]}))
  liar = made._registry.members['c0'].signing_key
  assert 'garbage' in refused(made, dataclasses.replace(lie, signature=liar.sign(lie.statement)))


@pytest.mark.slow
def test_who_was_not_selected_does_not_count():
  made = server(max_clients=2)
  clients = [client(i) for i in range(4)]
  chosen = made.select_clients(clients)
  report = asyncio.run(made.aggregate(updates_of(clients)))
  assert set(report.participants) == {x.client_id for x in chosen}
  assert all('not selected' in why for why in report.left_out.values()) and report.left_out


class Exiting(FederatedClient):
  async def train_round(self):
    raise SystemExit('the whole program')


class Timing(FederatedClient):
  async def train_round(self):
    raise TimeoutError('its own')


class Nothing(FederatedClient):
  async def train_round(self):
    return None


class Thief(FederatedClient):
  """Sends what another client signed."""

  async def train_round(self):
    return await self.victim.train_round()


class Slow(FederatedClient):
  """Computes for longer than the server waits; holds what training holds."""

  def _computed(self, *given):
    self.wait.wait(60)
    return super()._computed(*given)


def test_each_bad_client_is_named_with_its_reason():
  made = server(client_timeout=30.0)
  kinds = {0: Exiting, 1: Timing, 2: Nothing, 3: Thief, 4: Nothing}
  clients = [client(i, kinds.get(i, FederatedClient)) for i in range(7)]
  clients[3].victim = clients[6]
  for x in clients:
    made.register(x)
  report = asyncio.run(made.run_round())
  assert set(report.participants) == {'c5', 'c6'}
  whys = {'c0': 'SystemExit', 'c1': 'its own', 'c2': 'garbage', 'c3': 'another', 'c4': 'garbage'}
  assert set(report.left_out) == set(whys)
  for name, why in whys.items():
    assert why in report.left_out[name]


@pytest.mark.slow
def test_a_late_result_is_discarded_and_does_not_stop_the_next_round():
  made = server(client_timeout=4.0)
  updates_of([client(9)])  # compiles what they all run
  late = client(0, Slow)
  late.wait = threading.Event()
  for x in (late, client(1), client(2)):
    made.register(x)
  report = asyncio.run(made.run_round())
  assert report.left_out == {'c0': 'no answer within 4.0 seconds'}
  report = asyncio.run(made.run_round())
  assert report.left_out == {'c0': 'no answer within 4.0 seconds'} and made.round == 2
  late.wait.set()
  report = asyncio.run(made.run_round())
  assert set(report.participants) == {'c0', 'c1', 'c2'}


@pytest.mark.slow
def test_a_secure_round_that_ends_below_its_threshold_uses_up_its_number():
  made = server(aggregation=SECURE)
  clients = [client(i, privacy_config=PrivacyConfig(epsilon=9.0)) for i in range(5)]
  before = made.get_global_model().digest
  updates = updates_of(made.select_clients(clients))
  # More than half are needed, to have the secrets.
  with pytest.raises(NotEnoughClients, match=r'3 or more.*Round 0 has ended without a sum'):
    asyncio.run(made.aggregate(updates[:2]))
  assert made.round == 1 and made.get_global_model().digest == before
  (report,) = made.reports
  assert report.round == 0 and report.participants == () and report.epsilon > 0
  with pytest.raises(NotEnoughClients, match='stale'):  # masks of a round that is over
    asyncio.run(made.aggregate(updates))
  assert made.round == 1
  again = updates_of(made.select_clients(clients))
  assert all(x.privacy.releases == 2 for x in clients)  # other noise, since other masks
  assert {x.data for x in updates}.isdisjoint(x.data for x in again)
  asyncio.run(made.aggregate(again[:4]))
  assert made.round == 2 and len(made.reports[-1].participants) == 4


@pytest.mark.slow
def test_selected_twice_in_a_secure_round_is_the_next_round():
  made = server(aggregation=SECURE, rounds=2)
  clients = [client(i) for i in range(3)]
  made.select_clients(clients)
  made.select_clients(clients)  # nobody has masked anything yet
  assert made.round == 0 and not made.reports
  updates_of(clients)
  again = updates_of(made.select_clients(clients))
  assert made.round == 1 and made.reports[0].participants == ()
  asyncio.run(made.aggregate(again))
  assert made.round == 2
  with pytest.raises(ValueError, match='nothing is left'):
    made.select_clients(clients)


class Rarely(FederatedClient):
  """Raises in the first round."""

  async def train_round(self):
    if self._round == 0:
      raise RuntimeError('battery')
    return await super().train_round()


def test_run_round_goes_on_after_a_secure_round_without_a_sum():
  made = server(aggregation=SECURE)
  for i in range(4):
    made.register(client(i, Rarely if i < 2 else FederatedClient))
  with pytest.raises(NotEnoughClients, match='Round 0 has ended without a sum'):
    asyncio.run(made.run_round())
  assert 'battery' in made.reports[0].left_out['c0']
  report = asyncio.run(made.run_round())
  assert report.round == 1 and len(report.participants) == 4 and len(made.reports) == 2


class Spoiling(FederatedClient):
  """Signs bytes, or a weight, that are none of the protocol's."""

  def _bytes(self, sent, place, round):
    if place.secure is None:
      return compression.dense(sent.message.update, 1e-30)
    return bytes(len(super()._bytes(sent, place, round)))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['secure_aggregation', 'federated_averaging'])
def test_one_that_would_spoil_the_sum_does_not_end_the_round(kind):
  made = server(aggregation=kind)
  for i in range(4):
    made.register(client(i, Spoiling if i == 2 else FederatedClient))
  report = asyncio.run(made.run_round())
  assert 'garbage' in report.left_out['c2'] and len(report.participants) == 3


@pytest.mark.slow
def test_masks_are_for_those_that_were_selected():
  made = server(aggregation=AggregationStrategy.SECURE_AGGREGATION, max_clients=2)
  clients = [client(i) for i in range(3)]
  chosen = made.select_clients(clients)
  (other,) = [x for x in clients if x not in chosen]
  with pytest.raises(ValueError, match='must be selected'):
    updates_of([other])
  asyncio.run(made.aggregate(updates_of(chosen)))


@pytest.mark.slow
def test_clients_may_compress_each_in_its_own_way():
  kinds = (
    None,
    CompressionConfig(method='random_k', compression_ratio=0.5),
    CompressionConfig(compression_ratio=0.3),
    CompressionConfig(method='quantization', quantization_bits=4),
  )
  clients = [client(i, compression_config=kind) for i, kind in enumerate(kinds)]
  made = server()
  before = made.get_global_model()
  for _ in range(2):
    updates = updates_of(made.select_clients(clients))
    asyncio.run(made.aggregate(updates))
    share = 1 / sum(x.metadata.num_examples for x in updates)
    want = before.params
    for x in updates:
      want = tree.sub(want, tree.scale(share, x.values))
    before = made.get_global_model()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before.params, want)
    for x in clients:
      x.receive_global_model(before)


@pytest.mark.slow
def test_steps_of_fedsgd_are_of_one_size():
  made = server(aggregation=AggregationStrategy.FEDERATED_SGD)
  updates = updates_of(made.select_clients([client(0), client(1, learning_rate=0.2)]))
  with pytest.raises(ValueError, match='learning_rate must be the same'):
    asyncio.run(made.aggregate(updates))
