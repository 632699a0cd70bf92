"""A round built from its parts, without a configuration: where research code begins."""

import jax
import optax

from fedjax_mem import compose, data, models, optim, simulate
from fedjax_mem.stages import algorithm, select, weigh

digits = data.load('digits', partition='dirichlet', alpha=0.5, num_clients=50, seed=0)
model = models.build('mlp', digits.input_shape, digits.num_classes)
layers = compose(
  algorithm.fedavg(
    model.loss,
    learning_rate=0.1,
    batch_size=10,
    epochs=2,
    optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
    server_optimizer=optim.fedavgm(learning_rate=1.0, momentum=0.5),
  ),
  select.uniform(num_clients=50, cohort_size=10),
  weigh.by_examples(),
)
params = model.init(jax.random.key(0))
sim = simulate(layers, params, digits.population(), seed=0, transforms=(digits.preprocess,))
state, metrics = sim.run(sim.init(params), rounds=40)
values = model.metrics(state.params, digits.preprocess(digits.test))
print(f'test accuracy {values["accuracy"].mean():.3f} after {state.round} rounds')
