"""Server optimizers: optax transformations of the average update (server - client)."""

from collections.abc import Callable

import optax

from fedjax_mem.optim.adaptive import fedadagrad, fedadam, fedyogi
from fedjax_mem.optim.fedavgm import fedavgm, sgd

SERVER_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': sgd,
  'fedavgm': fedavgm,
  'fedadagrad': fedadagrad,
  'fedadam': fedadam,
  'fedyogi': fedyogi,
}

__all__ = ('SERVER_OPTIMIZERS', 'fedadagrad', 'fedadam', 'fedavgm', 'fedyogi', 'sgd')
