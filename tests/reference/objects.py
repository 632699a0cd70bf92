"""Servers and clients as objects that tests share: a logistic model, eight examples a client."""

import asyncio

import numpy as np

from fedjax_mem import models
from fedjax_mem.federated import ClientConfig, FederatedClient, FederatedServer, ServerConfig

MODEL = models.build('logistic', (4,), 3)


def client(i, cls=FederatedClient, count=8, **options):
  """Returns a client with random examples."""
  rng = np.random.default_rng(i)
  x, y = rng.normal(size=(count, 4)).astype(np.float32), rng.integers(0, 3, count)
  given = {'local_epochs': 2, 'batch_size': 4, 'learning_rate': 0.1, **options}
  return cls(ClientConfig(client_id=f'c{i}', **given), MODEL.copy(), (x, y))


def server(**options):
  """Returns a server."""
  return FederatedServer(ServerConfig(**{'min_clients': 2, 'rounds': 3, **options}), MODEL)


def loop(made, clients, rounds=3):
  """Returns the parameters after some rounds, one client after another."""

  async def run():
    for _ in range(rounds):
      updates = [await x.train_round() for x in made.select_clients(clients)]
      await made.aggregate(updates)
      for x in clients:
        x.receive_global_model(made.get_global_model())

  asyncio.run(run())
  return made.get_global_model().params
