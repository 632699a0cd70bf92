"""FedAvg on digits, 20 clients, in FedJAX 0.0.17 (Python 3.10, jax 0.4.30, NumPy 1)."""

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1500], order[1500:]

parts = {str(i): {'x': x[r], 'y': y[r]} for i, r in enumerate(np.array_split(train, 20))}
data = fedjax.InMemoryFederatedData(parts)


def loss(params, batch, rng):
  """Returns the mean cross-entropy of a batch."""
  del rng
  logits = jax.nn.log_softmax(batch['x'] @ params['w'] + params['b'])
  return -jnp.take_along_axis(logits, batch['y'][:, None], axis=1).mean()


algorithm = fed_avg.federated_averaging(
  jax.grad(loss),
  client_optimizer=fedjax.optimizers.sgd(0.5),
  server_optimizer=fedjax.optimizers.sgd(1.0),
  client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1, seed=0),
)
sampler = fedjax.client_samplers.UniformGetClientSampler(data, num_clients=5, seed=0)
state = algorithm.init({'w': jnp.zeros((64, 10)), 'b': jnp.zeros(10)})
for _ in range(10):
  state, _ = algorithm.apply(state, sampler.sample())
right = (x[test] @ state.params['w'] + state.params['b']).argmax(1) == y[test]
print('accuracy', round(float(right.mean()), 3))
