"""Which clients take part in a round."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.select.dropout import dropout
from fedjax_mem.stages.select.poisson import poisson
from fedjax_mem.stages.select.round_robin import round_robin
from fedjax_mem.stages.select.uniform import uniform

SAMPLERS: dict[str, Callable[..., Layer]] = {
  'uniform': uniform,
  'poisson': poisson,
  'round_robin': round_robin,
}

__all__ = ('SAMPLERS', 'dropout', 'poisson', 'round_robin', 'uniform')
