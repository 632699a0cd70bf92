"""Settings of local training: together, kept by a model, refused, and by configurations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem import models
from fedjax_mem.config import build, sections
from fedjax_mem.config.load import load_config
from fedjax_mem.core import Accumulated, compose
from fedjax_mem.kernels.nn.rewrite import _equations
from fedjax_mem.models import precision
from fedjax_mem.models.training import Training
from fedjax_mem.stages.algorithm import fedavg
from fedjax_mem.stages.algorithm._base import loss_of as loss_of_algorithm
from fedjax_mem.stages.weigh import by_examples

MODEL = models.build('mlp', (tiny.FEATURES,), tiny.CLASSES, hidden=(8, 8, 8))
BATCH = {'x': jnp.ones((6, tiny.FEATURES)), 'y': jnp.arange(6) % tiny.CLASSES}


def primitives(function, *args):
  """Returns (name, dtype of the result) of all equations of a function."""
  found = _equations(jax.make_jaxpr(function)(*args).jaxpr)
  return {
    (x.primitive.name, str(getattr(x.outvars[0].aval, 'dtype', ''))) for x in found if x.outvars
  }


def test_at_their_defaults_the_model_is_the_same():
  assert models.trained_with(MODEL) is MODEL
  assert models.trained_with(MODEL, dtype='float32', remat=False, accumulate=1) is MODEL


def test_settings_are_added_and_those_at_their_default_stay():
  model = models.trained_with(models.trained_with(MODEL, dtype='bfloat16'), accumulate=3)
  assert model.training[0] == Training('bfloat16', False, 3)
  assert isinstance(model.loss, Accumulated) and model.loss.parts == 3
  assert model.training[1] is MODEL.loss


@pytest.mark.slow
def test_all_together_train_in_16_bits_near_to_none():
  params = MODEL.init(jax.random.key(0))

  def state(model):
    layer = fedavg(model.loss, learning_rate=0.3, batch_size=5, epochs=2)
    layers = compose(layer, tiny.rota(), by_examples())
    return tiny.execute(tiny.build(layers, params=params), params=params)[0]

  all_of_it = models.trained_with(MODEL, dtype='bfloat16', remat=True, accumulate=2)
  np.testing.assert_allclose(*(tiny.vec(state(x).params) for x in (all_of_it, MODEL)), atol=0.03)
  found = primitives(jax.grad(lambda p: all_of_it.loss(p, BATCH).sum()), params)
  assert ('dot_general', 'bfloat16') in found and any(name == 'scan' for name, _ in found)


@pytest.mark.parametrize('change', ['for_task', 'as_it_is'])
def test_another_task_and_plain_convolutions_keep_the_settings(change):
  model = models.trained_with(MODEL, dtype='bfloat16', accumulate=2)
  changed = models.as_it_is(model) if change == 'as_it_is' else model.for_task('classification')
  assert changed.training[0] == model.training[0] and changed.loss.parts == 2
  params = MODEL.init(jax.random.key(0))
  tiny.assert_same_bits(changed.loss(params, BATCH), model.loss(params, BATCH))


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'dtype': 'float16'}, r"dtype must be one of .*'bfloat16'.*got 'float16'"),
    ({'remat': 1}, 'remat must be true or false, got 1'),
    ({'accumulate': 0}, 'accumulate must be .*, got 0'),
    ({'accumulate': 2.0}, r'accumulate must be .*, got 2\.0'),
  ],
)
def test_bad_settings_are_refused(options, said):
  with pytest.raises(ValueError, match=said):
    models.trained_with(MODEL, **options)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    norm = nn.BatchNorm(use_running_average=not train)
    return nn.Dense(tiny.CLASSES)(norm(nn.Dense(5)(x)))


def test_running_statistics_of_parts_are_refused():
  model = models.from_linen(Net(), (tiny.FEATURES,), tiny.CLASSES, statistics='average')
  with pytest.raises(ValueError, match=r'accumulate must be 1 .*model\.statistics.* got 2'):
    models.trained_with(model, accumulate=2)


def _blur(params, batch, key=None):
  y = jax.lax.conv(batch['x'][:, None, :, None], params, (1, 1), 'SAME')
  return jnp.tanh(jax.lax.conv(y, params, (1, 1), 'SAME')).sum((1, 2, 3))


@pytest.mark.parametrize('plain', [False, True])
def test_convolutions_of_a_loss_of_ones_own_are_fast_unless_they_are_to_stay(plain):
  own = MODEL._replace(loss=_blur, task=None)
  own = models.as_it_is(own) if plain else own
  model = models.trained_with(own, dtype='bfloat16', remat=True, accumulate=2)
  loss = loss_of_algorithm(model.loss)
  total = lambda p: loss.total(p, BATCH, jnp.ones(6, bool))
  found = {name for name, _ in primitives(jax.grad(total), jnp.ones((1, 1, 3, 1)))}
  assert ('conv_general_dilated' in found) == plain


# Through a configuration.


def loss_of(*overrides):
  """Returns the model of a small experiment, and the loss that its algorithm gets."""
  small = 'data.num_clients=4', 'selection.cohort_size=2', 'rounds=2'
  config = load_config(
    'quickstart', [*small, 'model.name=logistic', 'model.options={}', *overrides]
  )
  data = build.load_data(config)
  model, seen = build.build_model(config, data), []
  keep = lambda loss, **options: (seen.append(loss), fedavg(loss, learning_rate=0.1, batch_size=5))[
    1
  ]
  original = build.ALGORITHMS['fedavg']
  build.ALGORITHMS['fedavg'] = keep
  try:
    build.build_layers(config, model, data.num_clients, data)
  finally:
    build.ALGORITHMS['fedavg'] = original
  return model, seen[0]


def test_a_configuration_sets_the_loss_of_its_algorithm_and_no_other():
  model, plain = loss_of()
  assert plain is model.loss
  model, loss = loss_of('client.dtype=bfloat16', 'client.remat=true', 'client.accumulate=2')
  assert isinstance(loss, Accumulated) and model.training is None
  batch = {'x': jnp.ones((2, *model.input_shape)), 'y': jnp.zeros(2, jnp.int32)}
  params = model.init(jax.random.key(0))
  assert ('dot_general', 'bfloat16') in primitives(loss.loss, params, batch)
  assert ('dot_general', 'bfloat16') not in primitives(model.metrics, params, batch)


def test_a_configuration_refuses_by_its_own_names():
  with pytest.raises(ValueError, match=r"client\.dtype must be one of .*got 'half'"):
    loss_of('client.dtype=half')
  with pytest.raises(ValueError, match=r'client\.accumulate must be .*, got 0'):
    loss_of('client.accumulate=0')
  private = (
    'algorithm.options={steps=1, rate=0.5, l2_clip_norm=1.0, noise_multiplier=0.0}',
    'client.accumulate=2', 'algorithm.name=dp_sgd', 'weighting.name=equal',
  )  # fmt: skip
  with pytest.raises(ValueError, match=r'algorithm: accumulate must be 1 \(client\.accumulate\)'):
    loss_of(*private)


def test_configurations_and_models_take_the_same_dtypes():
  assert sections.DTYPES == precision.DTYPES
