"""The works W1 to W3 and M1 in FedJAX 0.0.17, by its federated averaging and `for_each_client`.

FedJAX needs an older JAX, so an environment of its own, with Python 3.10 (TensorFlow is not used):

    pip install fedjax==0.0.17 jax==0.4.30 jaxlib==0.4.30 'numpy<2' dm-haiku==0.0.12
    python -m benchmarks.peers.fedjax_runner FOLDER

FOLDER and the lines on standard input are those of `benchmarks/peers/torch_loop.py`. One program
a local step, one client after another on all cores, is FedJAX's jit backend, the best seen for W3.
Its pmap backend, on one host device a core, is 1.6 times as fast for the CNN of W1 and W2 (a
cohort in blocks of one client a device), but a third as fast for W3: those are the defaults.
FedJAX has no noise: W2 is the same client training with FedJAX's clip by global norm, and a
Gaussian on the sum.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg


def _cnn() -> hk.Sequential:
  return hk.Sequential(
    [
      hk.Conv2D(32, 3, padding='VALID'),
      jax.nn.relu,
      hk.Conv2D(64, 3, padding='VALID'),
      jax.nn.relu,
      hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), padding='VALID'),
      hk.Flatten(),
      hk.Linear(128),
      jax.nn.relu,
      hk.Linear(10),
    ]
  )


def _logistic() -> hk.Sequential:
  return hk.Sequential([hk.Flatten(), hk.Linear(10)])


def _mlp() -> hk.Sequential:
  layers = [hk.Linear(200), jax.nn.relu, hk.Linear(200), jax.nn.relu, hk.Linear(10)]
  return hk.Sequential([hk.Flatten(), *layers])


MODELS = {'cnn': _cnn, 'logistic': _logistic, 'mlp': _mlp}
DEVICES = {'cnn': 2, 'logistic': 1, 'mlp': 1}


def make_model(name: str) -> fedjax.Model:
  """Returns the model of a work, for x [B, 28, 28, 1] uint8: bytes are moved, then scaled."""

  def forward(batch):
    return MODELS[name]()(batch['x'].astype(jnp.float32) / 255)

  return fedjax.create_model_from_haiku(
    hk.transform(forward),
    {'x': np.zeros((1, 28, 28, 1), np.uint8), 'y': np.zeros(1, np.int32)},
    lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch['y'], logits),
    {'accuracy': fedjax.metrics.Accuracy()},
  )


def load(folder: pathlib.Path, prefix: str = '') -> dict[str, np.ndarray]:
  """Returns examples as FedJAX wants them."""
  x = np.load(folder / f'{prefix}x.npy').reshape(-1, 28, 28, 1)
  return {'x': x, 'y': np.load(folder / f'{prefix}y.npy').astype(np.int32)}


def population(work: dict[str, Any], folder: pathlib.Path) -> fedjax.InMemoryFederatedData:
  """Returns the clients: consecutive blocks of a permutation, repeated beyond its end."""
  data = load(folder)
  order = np.random.default_rng(0).permutation(len(data['y']))
  n = work['examples']
  rows = [order[np.arange(c * n, (c + 1) * n) % len(order)] for c in range(work['num_clients'])]
  return fedjax.InMemoryFederatedData(
    {client: {k: v[r] for k, v in data.items()} for client, r in enumerate(rows)}
  )


def private_averaging(grad_fn, client_optimizer, server_optimizer, hparams, work):
  """Returns federated averaging with clipped updates, a fixed divisor and noise on the sum."""
  clip, multiplier = work['privacy']

  def client_init(params, key):
    return {'params': params, 'opt_state': client_optimizer.init(params), 'key': key}

  def client_step(state, batch):
    key, use = jax.random.split(state['key'])
    grads = grad_fn(state['params'], batch, use)
    opt_state, params = client_optimizer.apply(grads, state['opt_state'], state['params'])
    return {'params': params, 'opt_state': opt_state, 'key': key}

  def client_final(params, state):
    update = jax.tree_util.tree_map(jnp.subtract, params, state['params'])
    return fedjax.tree_util.tree_clip_by_global_norm(update, clip)

  @jax.jit
  def private_mean(total, key):
    leaves, treedef = jax.tree_util.tree_flatten(total)
    keys = jax.random.split(key, len(leaves))
    noisy = [
      (x + clip * multiplier * jax.random.normal(k, x.shape)) / work['cohort']
      for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, noisy)

  train = fedjax.for_each_client(client_init, client_step, client_final)

  def init(params):
    return fed_avg.ServerState(params, server_optimizer.init(params))

  def apply(state, clients):
    batches = [(name, data.shuffle_repeat_batch(hparams), key) for name, data, key in clients]
    total = fedjax.tree_util.tree_sum(update for _, update in train(state.params, batches))
    # Folded from a client's key, which is otherwise only ever split.
    mean = private_mean(total, jax.random.fold_in(clients[0][2], work['cohort']))
    opt_state, params = server_optimizer.apply(mean, state.opt_state, state.params)
    return fed_avg.ServerState(params, opt_state), {}

  return fedjax.FederatedAlgorithm(init, apply)


def draw(work: dict[str, Any], federation: fedjax.FederatedData, done: int) -> list[Any]:
  """Returns (client, data, key) of a round's clients.

  As UniformGetClientSampler does, but with the keys in NumPy: to slice 500 keys off a device array
  is a fifth of a round of W3.
  """
  n, cohort = work['num_clients'], work['cohort']
  clients = np.random.default_rng([1, done]).choice(n, cohort, replace=False)
  keys = np.asarray(jax.random.split(jax.random.PRNGKey(done), cohort))
  chosen = federation.get_clients(clients.tolist())
  return [(client, data, key) for (client, data), key in zip(chosen, keys, strict=True)]


def algorithm(work: dict[str, Any], model: fedjax.Model) -> fedjax.FederatedAlgorithm:
  """Returns the algorithm of a work."""
  how = (
    fedjax.model_grad(model),
    fedjax.optimizers.sgd(work['learning_rate'], work['momentum'] or None),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(work['batch_size'], num_epochs=work['epochs']),
  )
  return private_averaging(*how, work) if work['privacy'] else fed_avg.federated_averaging(*how)


def main() -> None:
  """Serves rounds on standard input and output."""
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--devices', type=int, help='1: jit; more: pmap over so many host devices')
  args = parser.parse_args()
  work = json.loads((args.folder / 'work.json').read_text())
  if work['model'] not in MODELS or (more := {'data', 'dp_sgd', 'feedback'} & set(work)):
    what = f'the model {work["model"]!r}' if work['model'] not in MODELS else sorted(more)
    raise SystemExit(f'the works of this peer are W1 to W3 and M1, got {what}.')
  devices = args.devices or DEVICES[work['model']]
  # Read when jax first looks for devices, below; flags of a newer XLA would end an older one.
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  fedjax.set_for_each_client_backend('jit' if devices == 1 else 'pmap')
  model = make_model(work['model'])
  federated = algorithm(work, model)
  state = federated.init(model.init(jax.random.PRNGKey(0)))
  federation = population(work, args.folder)
  test = fedjax.ClientDataset(load(args.folder, 'test_'))
  print(json.dumps({k: importlib.metadata.version(k) for k in ('fedjax', 'jax')}), flush=True)
  done = 0
  for line in sys.stdin:
    if line.strip() == 'accuracy':
      metrics = fedjax.evaluate_model(model, state.params, test.padded_batch(batch_size=500))
      print(json.dumps({'accuracy': float(metrics['accuracy'])}), flush=True)
      continue
    seconds: list[float] = []
    for _ in range(int(line)):
      began = time.perf_counter()
      state, _ = federated.apply(state, draw(work, federation, done))
      jax.block_until_ready(state.params)
      seconds.append(time.perf_counter() - began)
      done += 1
    print(json.dumps({'seconds': seconds}), flush=True)


if __name__ == '__main__':
  main()
