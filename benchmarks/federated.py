"""How much faster the compiled engine is than the loop over the objects: 50 clients, one result.

python -m benchmarks.federated
"""

import asyncio
import json
import time

import jax
import numpy as np

from fedjax_mem import data, models
from fedjax_mem.federated import (
  ClientConfig,
  FederatedClient,
  FederatedServer,
  ServerConfig,
  simulate_federation,
)

CLIENTS, ROUNDS = 50, 20


def main() -> None:
  """Runs both twice and prints the second: the loop compiles nothing then."""
  digits = data.load('digits', partition='iid', num_clients=CLIENTS, seed=0)
  model = models.build('logistic', digits.input_shape, digits.num_classes)
  arrays = digits.preprocess(digits.arrays)
  config = ServerConfig(rounds=ROUNDS)

  def clients() -> list[FederatedClient]:
    make = lambda i: ClientConfig(client_id=f'device-{i}', batch_size=16, learning_rate=0.1)
    rows = [digits.rows(i) for i in range(CLIENTS)]
    return [
      FederatedClient(make(i), model, (arrays['x'][r], arrays['y'][r])) for i, r in enumerate(rows)
    ]

  async def loop(server: FederatedServer, members: list[FederatedClient]) -> None:
    for _ in range(ROUNDS):
      updates = [await x.train_round() for x in server.select_clients(members)]
      await server.aggregate(updates)
      for x in members:
        x.receive_global_model(server.get_global_model())

  for _ in range(2):
    members, server = clients(), FederatedServer(config, model)
    began = time.perf_counter()
    asyncio.run(loop(server, members))
    slow = time.perf_counter() - began
    began = time.perf_counter()
    found = simulate_federation(FederatedServer(config, model), members)
    fast = time.perf_counter() - began
  pairs = zip(
    jax.tree.leaves(found.model.params),
    jax.tree.leaves(server.get_global_model().params),
    strict=True,
  )
  said = {
    'clients': CLIENTS,
    'rounds': ROUNDS,
    'loop_over_objects_s': round(slow, 2),
    'compiled_engine_s': round(found.seconds, 3),
    'compiled_engine_and_its_compilation_s': round(fast, 2),
    'loop_over_engine': round(slow / found.seconds, 1),
    'largest_difference': float(max(np.abs(a - b).max() for a, b in pairs)),
  }
  print(
    f'{CLIENTS} clients, {ROUNDS} rounds: {slow:.2f} s by the loop over objects (compiled before), '
    f'{found.seconds:.3f} s by the compiled engine, after {fast - found.seconds:.2f} s of its own '
    f'compilation; the same parameters up to {said["largest_difference"]:.1g}'
  )
  print(json.dumps(said))


if __name__ == '__main__':
  main()
