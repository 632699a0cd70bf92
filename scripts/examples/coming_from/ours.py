"""FedAvg on digits, 20 clients, in fedjax_mem: beside it the same in FedJAX, pfl and Flower."""

import jax
import numpy as np
from sklearn.datasets import load_digits

import fedjax_mem as fm
from fedjax_mem.stages import algorithm, select, weigh

x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1500], order[1500:]

clients = np.array_split(train, 20)
digits = fm.data.from_arrays(x, y, clients, test=(x[test], y[test]))
model = fm.models.build('logistic', digits.input_shape, digits.num_classes)
layers = fm.compose(
  algorithm.fedavg(model.loss, learning_rate=0.5, batch_size=20),
  select.uniform(num_clients=20, cohort_size=5),
  weigh.by_examples(),
)
params = model.init(jax.random.key(0))
sim = fm.simulate(layers, params, digits.population(), seed=0, transforms=(digits.preprocess,))
state, metrics = sim.run(sim.init(params), rounds=10)
right = model.apply(state.params, x[test]).argmax(1) == y[test]
print('accuracy', round(float(right.mean()), 3))
