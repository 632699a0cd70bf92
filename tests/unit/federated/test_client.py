"""What leaves a client: noise of its own, one masked update a round, and nothing in the clear."""

import asyncio
import copy
import dataclasses
import math
import pickle

import jax
import numpy as np
import pytest
from reference.objects import MODEL, client, server

from fedjax_mem.core import keys
from fedjax_mem.federated import (
  AggregationStrategy,
  ClientConfig,
  DifferentialPrivacy,
  FederatedClient,
  NotEnoughClients,
  PrivacyConfig,
)
from fedjax_mem.federated.secret import REPEATABLE
from fedjax_mem.secagg.errors import ProtocolError

SECURE = AggregationStrategy.SECURE_AGGREGATION
# Hardly any clipping, and noise that is seen.
PRIVACY = PrivacyConfig(epsilon=1e6, max_grad_norm=100.0, noise_multiplier=0.01)


def train(*clients):
  async def run():
    return [await x.train_round() for x in clients]

  return asyncio.run(run())


def vector(update):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(update.values)])


def twin(noise_seed=None, **options):
  """Returns client 0 with its noise."""
  made = client(0, privacy_config=PRIVACY, **options)
  if noise_seed is None:
    return made
  data = made.data.x, made.data.y
  return FederatedClient(made.config, MODEL.copy(), data, noise_seed=noise_seed)


def sent_in(made, *clients):
  return train(*made.select_clients(clients))


@pytest.mark.slow
def test_two_servers_of_one_seed_do_not_see_the_same_noise():
  """The update is the same: with the server's own seed in the noise, so was what it saw."""
  (one,), (other,) = (sent_in(server(min_clients=1, seed=5), twin()) for _ in range(2))
  assert np.abs(vector(one) - vector(other)).min() > 0
  gap = (vector(one) - vector(other)).std()
  assert 0.5 < gap / (2**0.5) < 2  # two draws of noise of standard deviation 1


@pytest.mark.slow
def test_the_server_cannot_subtract_the_noise():
  """Whatever it computes from what it knows: its seed, the round, the client's number."""
  made = server(min_clients=1, seed=5)
  mine = twin()
  (update,) = sent_in(made, mine)
  bare = twin()
  bare._place = mine._place
  known = bare.sides().client(
    MODEL_PARAMS,
    bare._padded,
    np.int32(bare.data.num_examples),
    np.uint32(5),
    np.int32(0),
    np.int32(0),
    keys.open_root(5),
  )
  guess = np.concatenate([np.ravel(x) for x in jax.tree.leaves(known.message.update)])
  assert np.abs(vector(update) - guess).min() > 1e-4


MODEL_PARAMS = client(0).model.params


def test_every_release_of_a_client_has_its_own_noise():
  mine = twin()
  first, second = train(mine)[0], train(mine)[0]  # alone: from the same parameters
  assert np.abs(vector(first) - vector(second)).min() > 0


def test_noise_is_repeated_by_a_seed_of_the_clients_own_alone():
  (one,), (same,) = (sent_in(server(min_clients=1, seed=5), twin(7)) for _ in range(2))
  np.testing.assert_array_equal(vector(one), vector(same))
  (other,) = sent_in(server(min_clients=1, seed=5), twin(8))
  assert np.abs(vector(one) - vector(other)).min() > 0
  said = twin(7).privacy.get_privacy_spent()
  assert REPEATABLE in said.notes and REPEATABLE in str(said)
  assert REPEATABLE not in str(twin().privacy.get_privacy_spent())


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5, True])
@pytest.mark.parametrize('private', [True, False])
def test_noise_seeds_out_of_range_are_refused(seed, private):
  config = ClientConfig(client_id='a', privacy_config=PRIVACY if private else None)
  data = np.zeros((2, 4), np.float32), np.zeros(2, int)
  with pytest.raises(ValueError, match='noise_seed must be'):
    FederatedClient(config, MODEL, data, noise_seed=seed)
  with pytest.raises(ValueError, match='noise_seed must be'):
    DifferentialPrivacy(PRIVACY, noise_seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize('secure', [True, False])
def test_the_secret_is_in_nothing_that_is_shown_sent_or_kept(secure):
  made = server(min_clients=2, aggregation=SECURE) if secure else server(min_clients=2)
  clients = [client(i, privacy_config=PRIVACY) for i in range(3)]
  updates = sent_in(made, *clients)
  report = asyncio.run(made.aggregate(updates))
  mine = clients[0]
  secret, root = mine.privacy._secret._key, mine.privacy._secret.root(0).tobytes()
  shown = [repr(x) for x in (mine, mine.privacy, mine.privacy._secret, updates[0], report, made)]
  shown += [str(mine.privacy.get_privacy_spent()), repr(made.privacy_accountant)]
  text = '\n'.join(shown).encode() + updates[0].data + updates[0].statement
  for hidden in (secret, root):
    for form in (hidden, hidden.hex().encode(), repr(hidden).encode(), repr(hidden)[2:-1].encode()):
      assert form not in text
  for way in (pickle.dumps, copy.deepcopy):
    for thing in (mine, mine.privacy):
      with pytest.raises((TypeError, AttributeError)):
        way(thing)


def test_a_release_is_charged_once_and_compiles_nothing_new():
  mine = twin()
  train(mine)
  compiled = mine.sides().client.__wrapped__._cache_size()
  train(mine, mine)
  assert mine.privacy.releases == 3 and mine.sides().client.__wrapped__._cache_size() == compiled


def failing(i, **options):
  """Returns a client whose training ends in NaN or infinity."""
  made = client(i, **options)
  x = np.full_like(made.data.x, 3e38)
  return FederatedClient(made.config, MODEL.copy(), (x, made.data.y))


def test_a_private_client_that_fails_is_not_seen_to():
  made = server(min_clients=2)
  clients = [client(0, privacy_config=PRIVACY), failing(1, privacy_config=PRIVACY)]
  good, bad = sent_in(made, *clients)
  assert len(good.data) == len(bad.data) and clients[1].privacy.releases == 1
  assert 0.5 < vector(bad).std() < 2  # zeros, and noise of standard deviation 1
  report = asyncio.run(made.aggregate([good, bad]))
  assert set(report.participants) == {'c0', 'c1'} and not report.left_out
  assert math.isfinite(report.loss)


@pytest.mark.slow
def test_a_client_without_privacy_that_fails_says_so():
  with pytest.raises(ValueError, match='must be finite'):
    train(failing(1))


UNCOVERED = ('num_examples', 'loss_before', 'loss_after', 'norm', 'clipped', 'seconds')


@pytest.mark.slow
@pytest.mark.parametrize('private', [True, False])
def test_under_masks_no_fact_of_a_client_crosses_in_the_clear(private):
  """Clients of other examples, of which one has more: all that is sent beside the masked bytes is
  the same."""
  privacy = PRIVACY if private else None
  clients = [client(i, count=8 + 4 * i, privacy_config=privacy) for i in range(3)]
  updates = sent_in(server(aggregation=SECURE), *clients)
  for x in updates:
    assert all(getattr(x.metadata, name) is None for name in UNCOVERED)
    assert x.values is None
  assert len({x.metadata for x in updates}) == 1


def test_under_masks_the_mean_loss_comes_from_the_sum():
  clients = [client(i, count=8 + 4 * i) for i in range(3)]
  secure, plain = server(aggregation=SECURE), server()
  asyncio.run(secure.aggregate(sent_in(secure, *clients)))
  updates = sent_in(plain, *[client(i, count=8 + 4 * i) for i in range(3)])
  asyncio.run(plain.aggregate(updates))
  losses = [x.metadata.loss_before for x in updates]
  wanted = np.average(losses, weights=[8, 12, 16])
  assert secure.reports[0].loss == pytest.approx(wanted, abs=1e-6)
  assert plain.reports[0].loss == pytest.approx(wanted, abs=1e-6)
  a, b = (x.get_global_model().params for x in (secure, plain))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


@pytest.mark.slow
def test_under_masks_and_privacy_the_losses_stay_at_home():
  made = server(aggregation=SECURE)
  clients = [client(0, privacy_config=PRIVACY), client(1), client(2)]
  report = asyncio.run(made.aggregate(sent_in(made, *clients)))
  assert math.isnan(report.loss) and len(report.participants) == 3
  sent = dataclasses.make_dataclass('Sent', ['before'])(1.5)
  assert all(x._loss(sent, x._place, 1.0) == 0 for x in clients)


@pytest.mark.parametrize('loss', [float('nan'), float('inf'), 1e30])
def test_a_loss_beyond_the_range_of_the_sum_counts_as_its_end(loss):
  sent = dataclasses.make_dataclass('Sent', ['before'])(loss)
  mine = client(0)
  assert mine._loss(sent, mine._place, 64.0) == 2.0**13


def test_an_update_is_masked_once_a_round():
  """The difference of two masked sums of one round would be one client's update."""
  made = server(aggregation=SECURE)
  clients = [client(i) for i in range(3)]
  chosen = made.select_clients(clients)
  first = train(*chosen)
  assert [x.data for x in train(*chosen)] == [x.data for x in first]  # the same bytes, again
  # A server that keeps its round and masks anew:
  made._sealed = {}
  made.select_clients(clients)
  assert made.round == 0
  with pytest.raises(ProtocolError, match=r"client 'c\d' must mask its update of round 0 once"):
    train(chosen[0])
  # Nor of other parameters, nor of an earlier round.
  chosen[0].receive_global_model(made.get_global_model(), 0)
  other = jax.tree.map(lambda x: x + 1, made._params())
  chosen[0].receive_global_model((lambda m: type(m)(m.model, other))(made.get_global_model()), 0)
  with pytest.raises(ProtocolError, match='round 0 once'):
    train(chosen[0])


def test_a_client_that_was_not_selected_may_still_mask_when_it_is():
  made = server(aggregation=SECURE, min_clients=2, max_clients=2, rounds=9)
  clients = [client(i) for i in range(3)]
  chosen = made.select_clients(clients)
  (other,) = [x for x in clients if x not in chosen]
  with pytest.raises(ValueError, match='must be selected'):
    train(other)
  with pytest.raises(NotEnoughClients):
    asyncio.run(made.aggregate([]))
  for _ in range(8):
    chosen = made.select_clients(clients)
    asyncio.run(made.aggregate(train(*chosen)))
    if other in chosen:
      return
    for x in clients:
      x.receive_global_model(made.get_global_model())
  pytest.fail('the client was never drawn')


def test_facts_kept_at_home_are_signed_as_such():
  made = server(aggregation=SECURE)
  update = sent_in(made, *[client(i) for i in range(2)])[0]
  forged = dataclasses.replace(update, metadata=update.metadata._replace(num_examples=0))
  assert forged.statement != update.statement
