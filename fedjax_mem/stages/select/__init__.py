"""Samplers, availability traces and drop-out: which clients take part in a round."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.select.contribution import contribution
from fedjax_mem.stages.select.diurnal import diurnal
from fedjax_mem.stages.select.dropout import dropout
from fedjax_mem.stages.select.importance import importance
from fedjax_mem.stages.select.markov import markov
from fedjax_mem.stages.select.min_separation import min_separation
from fedjax_mem.stages.select.oort import oort
from fedjax_mem.stages.select.poisson import poisson
from fedjax_mem.stages.select.power_of_choice import power_of_choice
from fedjax_mem.stages.select.round_robin import round_robin
from fedjax_mem.stages.select.stragglers import draw_durations, stragglers
from fedjax_mem.stages.select.uniform import uniform

SAMPLERS: dict[str, Callable[..., Layer | tuple[Layer, ...]]] = {
  'uniform': uniform,
  'poisson': poisson,
  'round_robin': round_robin,
  'min_separation': min_separation,
  'importance': importance,
  'power_of_choice': power_of_choice,
  'oort': oort,
  'contribution': contribution,
}
# Traces draw no cohort, so they are not samplers.
TRACES: dict[str, Callable[..., Layer]] = {'diurnal': diurnal, 'markov': markov}

__all__ = (
  'SAMPLERS',
  'TRACES',
  'contribution',
  'diurnal',
  'draw_durations',
  'dropout',
  'importance',
  'markov',
  'min_separation',
  'oort',
  'poisson',
  'power_of_choice',
  'round_robin',
  'stragglers',
  'uniform',
)
