"""FedAvg on digits, 20 clients, in Flower 1.42 (`flwr[simulation]`)."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1500], order[1500:]
parts = np.array_split(train, 20)
client, server = ClientApp(), ServerApp()


@client.train()
def fit(message, context):
  """Returns the client's parameters after one epoch of SGD, written out in NumPy."""
  w, b = (a.copy() for a in message.content['arrays'].to_numpy_ndarrays())
  rows = np.random.default_rng().permutation(parts[int(context.node_config['partition-id'])])
  for batch in np.split(rows, range(20, len(rows), 20)):
    logits = x[batch] @ w + b
    error = np.exp(logits - logits.max(1, keepdims=True))
    error = error / error.sum(1, keepdims=True) - np.eye(10)[y[batch]]
    w -= 0.5 * (x[batch].T @ error / len(batch)).astype(np.float32)
    b -= 0.5 * error.mean(0).astype(np.float32)
  records = {'arrays': ArrayRecord([w, b]), 'metrics': MetricRecord({'num-examples': len(rows)})}
  return Message(content=RecordDict(records), reply_to=message)


@server.main()
def main(grid, context):
  """Runs ten rounds of FedAvg and prints the accuracy."""
  start = ArrayRecord([np.zeros((64, 10), np.float32), np.zeros(10, np.float32)])
  strategy = FedAvg(fraction_train=0.25, fraction_evaluate=0.0)
  done = strategy.start(grid=grid, initial_arrays=start, num_rounds=10)
  w, b = done.arrays.to_numpy_ndarrays()
  print('accuracy', round(float(((x[test] @ w + b).argmax(1) == y[test]).mean()), 3))


if __name__ == '__main__':
  run_simulation(server, client, num_supernodes=20)
