"""Selection by contribution over objects: the scores, who is selected by them, what is refused."""

import asyncio
import math

import jax
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.federated import (
  AggregationStrategy,
  ClientConfig,
  CompressionConfig,
  FederatedClient,
  FederatedServer,
  PrivacyConfig,
  ServerConfig,
  simulate_federation,
)

MODEL = models.build('logistic', (4,), 3)
TRUE = np.random.default_rng(7).normal(size=(4, 3))


def examples(seed, count, garbage=False):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, 4)).astype(np.float32)
  y = (x @ TRUE).argmax(1)
  return x, (y + 1) % 3 if garbage else y


HELD = examples(99, 30)


def client(i, garbage=False, **options):
  given = {'local_epochs': 1, 'batch_size': 4, 'learning_rate': 0.2, **options}
  config = ClientConfig(client_id=f'c{i}', **given)
  return FederatedClient(config, MODEL, examples(i, 6 + i, garbage))


def server(held=HELD, **options):
  given = {'min_clients': 2, 'rounds': 40, 'selection_strategy': 'contribution', **options}
  return FederatedServer(ServerConfig(**given), MODEL, validation_data=held)


def loop(made, clients, rounds):
  async def run():
    for _ in range(rounds):
      await made.aggregate([await x.train_round() for x in made.select_clients(clients)])
      for x in clients:
        x.receive_global_model(made.get_global_model())

  asyncio.run(run())
  return made


def worth(params, updates):
  """Returns minus the mean loss on the held examples of the model of a set of updates, in NumPy."""
  weight = sum(x.metadata.num_examples for x in updates)
  kernel, bias = (np.asarray(params['logits'][name], np.float64) for name in ('kernel', 'bias'))
  for x in updates:
    kernel = kernel - np.asarray(x.values['logits']['kernel']) / weight
    bias = bias - np.asarray(x.values['logits']['bias']) / weight
  logits = HELD[0] @ kernel + bias
  picked = logits[np.arange(len(logits)), HELD[1]]
  return -(np.log(np.exp(logits).sum(1)) - picked).mean()


def shapley(params, updates, i):
  """Returns the Shapley value of update i by its definition."""
  others, total = [x for j, x in enumerate(updates) if j != i], 0.0
  for subset in range(2 ** len(others)):
    on = [x for j, x in enumerate(others) if subset >> j & 1]
    share = math.factorial(len(on)) * math.factorial(len(others) - len(on))
    gain = worth(params, [*on, updates[i]]) - worth(params, on)
    total += gain * share / math.factorial(len(updates))
  return total


@pytest.mark.slow
@pytest.mark.parametrize('kind', [None, 'top_k', 'random_k'])
@pytest.mark.parametrize('method', ['shapley', 'leave_one_out'])
def test_scores_are_the_values_by_definition(method, kind):
  config = CompressionConfig(method=kind, compression_ratio=0.5) if kind else None
  made = server(selection_options={'method': method})
  clients = [client(i, i == 2, compression_config=config) for i in range(4)]
  params = made.get_global_model().params

  async def run():
    updates = [await x.train_round() for x in made.select_clients(clients)]
    return updates, await made.aggregate(updates)

  updates, report = asyncio.run(run())
  for i, x in enumerate(updates):
    want = shapley(params, updates, i)
    if method == 'leave_one_out':
      want = worth(params, updates) - worth(params, updates[:i] + updates[i + 1 :])
    assert made.contributions[x.client_id] == pytest.approx(want, abs=2e-6)
  assert report.contributions == made.contributions


@pytest.mark.slow
def test_permutations_share_out_the_whole_gain():
  made = server(selection_options={'method': 'gtg', 'truncation': 0.0})
  clients = [client(i) for i in range(4)]
  before = made.get_global_model().evaluate(*HELD)['loss']
  loop(made, clients, 1)
  gain = before - made.get_global_model().evaluate(*HELD)['loss']
  assert sum(made.contributions.values()) == pytest.approx(gain, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['shapley', 'gtg'])
def test_scores_and_selection_are_the_engines(method):
  made = server(max_clients=3, selection_options={'method': method, 'explore': 0.4})
  clients = [client(i, i == 1) for i in range(6)]
  found = simulate_federation(made, clients, rounds=6)
  assert not made.contributions
  loop(made, clients, 6)
  took_part = [sorted(int(x.removeprefix('c')) for x in r.participants) for r in made.reports]
  # Rows that only fill the devices have the id -1.
  assert took_part == [sorted(i for i in ids if i >= 0) for ids in found.metrics['ids'].tolist()]
  assert set(found.contributions) == set(made.contributions)
  for name, score in found.contributions.items():
    assert made.contributions[name] == pytest.approx(score, abs=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    found.model.params,
    made.get_global_model().params,
  )


@pytest.mark.slow
def test_garbage_labels_score_lowest_and_are_selected_less():
  made = server(max_clients=3)
  loop(made, [client(i, i == 1) for i in range(6)], 20)
  assert min(made.contributions, key=made.contributions.get) == 'c1'
  assert made.contributions['c1'] < 0
  counts = {f'c{i}': sum(f'c{i}' in r.participants for r in made.reports) for i in range(6)}
  assert counts['c1'] < 20 * 3 / 6  # its share of a uniform draw


@pytest.mark.slow
def test_a_stated_share_is_explored():
  made = server(max_clients=4, selection_options={'explore': 0.5})
  clients = [client(i) for i in range(8)]
  extra = []
  for _ in range(12):
    scores = made.contributions
    best = sorted(scores, key=lambda x: -scores[x])[:2]
    loop(made, clients, 1)
    took_part = set(made.reports[-1].participants)
    assert len(took_part) == 4 and set(best) <= took_part
    extra.append(took_part - set(best))
  assert len(set().union(*extra)) == 8
  greedy = server(max_clients=4, selection_options={'explore': 0.0})
  loop(greedy, [client(i) for i in range(8)], 4)
  assert len(greedy.contributions) == 4  # who has no score stands last


@pytest.mark.slow
def test_who_is_left_out_gets_no_score():
  made = server()
  clients = [client(i) for i in range(4)]

  async def run():
    updates = [await x.train_round() for x in made.select_clients(clients)]
    return await made.aggregate([*updates[:3], 'garbage'])

  report = asyncio.run(run())
  assert set(report.contributions) == set(report.participants) and len(report.participants) == 3
  assert not loop(server(selection_strategy='random'), clients, 1).contributions


def test_what_is_refused():
  with pytest.raises(ValueError, match=r'validation_data must be given.*validation_data=\(x, y\)'):
    server(held=None)
  with pytest.raises(ValueError, match='of the shape'):
    server(held=(np.zeros((2, 5), np.float32), np.zeros(2, int)))
  with pytest.raises(ValueError, match='labels must be'):
    server(held=(np.zeros((2, 4), np.float32), np.array([0, 3])))
  for options in ({'by': 'loss'}, {'step': 0.1}):
    with pytest.raises(ValueError, match='selection_options must be'):
      server(selection_options=options)
  with pytest.raises(ValueError, match='explore must be'):
    server(selection_options={'explore': 2.0})
  for strategy in ('contribution', 'importance'):
    with pytest.raises(ValueError, match='secure aggregation'):
      server(aggregation=AggregationStrategy.SECURE_AGGREGATION, selection_strategy=strategy)
  private = client(0, privacy_config=PrivacyConfig())
  with pytest.raises(ValueError, match="must be 'random'"):
    server().register(private)
  with pytest.raises(ValueError, match="must be 'random'"):
    simulate_federation(server(), [private, client(1, privacy_config=PrivacyConfig())])
  coded = CompressionConfig(method='random_k')
  with pytest.raises(ValueError, match='decoded in the sum alone'):
    simulate_federation(server(), [client(i, compression_config=coded) for i in range(2)])
