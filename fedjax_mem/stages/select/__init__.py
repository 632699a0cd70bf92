"""Which clients take part in a round."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.select.dropout import dropout
from fedjax_mem.stages.select.min_separation import min_separation
from fedjax_mem.stages.select.poisson import poisson
from fedjax_mem.stages.select.round_robin import round_robin
from fedjax_mem.stages.select.uniform import uniform

SAMPLERS: dict[str, Callable[..., Layer]] = {
  'uniform': uniform,
  'poisson': poisson,
  'round_robin': round_robin,
  'min_separation': min_separation,
}

__all__ = ('SAMPLERS', 'dropout', 'min_separation', 'poisson', 'round_robin', 'uniform')
