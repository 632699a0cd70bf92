"""From a configuration to the optimizers of clients and server."""

from typing import Any

import optax

from fedjax_mem.config import registry
from fedjax_mem.config.sections import ClientSection, ServerSection
from fedjax_mem.core import factories
from fedjax_mem.optim import SERVER_OPTIMIZERS
from fedjax_mem.stages.algorithm import Sgd


def learning_rate(client: ClientSection, rounds: int) -> Any:
  """Returns the clients' learning rate: a number, or a schedule over rounds."""
  first, name = client.learning_rate, client.learning_rate_schedule
  if name == 'constant':
    return first
  if name == 'exponential':
    return optax.exponential_decay(first, client.decay_rounds or 1, client.decay_rate)
  length = client.decay_rounds or rounds
  if name == 'linear':
    return optax.linear_schedule(first, first * client.final_fraction, length)
  return optax.cosine_decay_schedule(first, length, alpha=client.final_fraction)


def client_optimizer(client: ClientSection) -> Any:
  """Returns learning rate -> the clients' optax optimizer; its state is reset in every round."""
  if client.optimizer != 'sgd':
    return _own_optimizer(client)
  return Sgd(client.momentum, client.weight_decay)


def _own_optimizer(client: ClientSection) -> Any:
  """Returns the factory of a user's optimizer, which has made one."""
  named = {'client.optimizer': client.optimizer}
  make = registry.factory('client.optimizer', client.optimizer, {}, registry.OPTIMIZER)
  try:
    value = make(client.learning_rate)
  except TypeError as error:
    raise ValueError(
      f'client.optimizer must name a factory that takes a learning rate, got {client.optimizer!r}: '
      f'{error}.'
    ) from error
  factories.check_made(registry.OPTIMIZER, value, **named)
  return make


def server_optimizer(server: ServerSection) -> optax.GradientTransformation:
  """Returns the server's optax optimizer of the average update."""
  given = {'b1': server.beta1, 'b2': server.beta2, 'tau': server.tau, 'momentum': server.momentum}
  if ':' in server.optimizer:  # 'optax:sgd' means plain steps, not our default momentum
    given = {}
  given['learning_rate'] = server.learning_rate
  made: optax.GradientTransformation = registry.made(
    'server', 'optimizer', server.optimizer, SERVER_OPTIMIZERS, {}, registry.OPTIMIZER, **given
  )
  return made
