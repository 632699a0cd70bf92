"""Federated training with objects: five devices, local privacy, compressed updates, on digits."""

import asyncio

import numpy as np

from fedjax_mem import data, models
from fedjax_mem.federated import (
  AggregationStrategy,
  ClientConfig,
  CompressionConfig,
  FederatedClient,
  FederatedServer,
  PrivacyConfig,
  ServerConfig,
)

DEVICES = 5
digits = data.load('digits', partition='iid', num_clients=DEVICES, seed=0)
base_model = models.build('logistic', digits.input_shape, digits.num_classes)


def get_local_data(i: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images and labels of device i."""
  rows = digits.rows(i)
  batch = digits.preprocess({name: x[rows] for name, x in digits.arrays.items()})
  return batch['x'], batch['y']


async def run_federated_training(rounds: int = 5, learning_rate: float = 1e-4, private=True):
  """Returns the server after training."""
  privacy = PrivacyConfig(epsilon=2.0, delta=1e-5, max_grad_norm=1.0) if private else None
  compression = CompressionConfig(method='top_k', compression_ratio=0.1)
  config = ServerConfig(
    min_clients=3,
    max_clients=10,
    rounds=rounds,
    aggregation=AggregationStrategy.FEDERATED_AVERAGING,
  )
  server = FederatedServer(config=config, global_model=base_model)
  clients = [
    FederatedClient(
      config=ClientConfig(
        client_id=f'device-{i}',
        local_epochs=2,
        batch_size=16,
        learning_rate=learning_rate,
        privacy_config=privacy,
        compression_config=compression if private else None,
      ),
      model=base_model.copy(),
      data_loader=get_local_data(i),
    )
    for i in range(DEVICES)
  ]
  for _ in range(rounds):
    selected = server.select_clients(clients)
    updates = [await client.train_round() for client in selected]
    await server.aggregate(updates)
    for client in clients:
      client.receive_global_model(server.get_global_model())
  return server


def accuracy(server: FederatedServer) -> float:
  """Returns the accuracy of the global model on the test set."""
  batch = digits.preprocess(digits.test)
  return server.get_global_model().evaluate(batch['x'], batch['y'])['accuracy']


def main() -> None:
  """Runs with privacy, where this noise leaves little to learn, and without."""
  server = asyncio.run(run_federated_training())
  spent = server.privacy_accountant.epsilon
  print(f'private: accuracy {accuracy(server):.3f}, ε={spent:.2f} for each device')
  server = asyncio.run(run_federated_training(30, 0.1, private=False))
  print(f'not private, learning rate 0.1, 30 rounds: accuracy {accuracy(server):.3f}')


if __name__ == '__main__':
  main()
