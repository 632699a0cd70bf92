"""The protocol of a round, and helpers for trees, keys and arguments that all rooms use.

Names are imported on first use, so that `core.validate` alone needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fedjax_mem.core.accumulated import Accumulated as Accumulated
  from fedjax_mem.core.bound import IN_ROUND as IN_ROUND
  from fedjax_mem.core.bound import UNKNOWN as UNKNOWN
  from fedjax_mem.core.bound import Bound as Bound
  from fedjax_mem.core.bound import known as known
  from fedjax_mem.core.bound import rounding as rounding
  from fedjax_mem.core.context import Context as Context
  from fedjax_mem.core.examples import Batch as Batch
  from fedjax_mem.core.examples import Examples as Examples
  from fedjax_mem.core.examples import Population as Population
  from fedjax_mem.core.examples import Shape as Shape
  from fedjax_mem.core.examples import Transform as Transform
  from fedjax_mem.core.examples import shape_of as shape_of
  from fedjax_mem.core.examples import stack_clients as stack_clients
  from fedjax_mem.core.facts import Attacks as Attacks
  from fedjax_mem.core.facts import Bounds as Bounds
  from fedjax_mem.core.facts import Broadcasts as Broadcasts
  from fedjax_mem.core.facts import Draws as Draws
  from fedjax_mem.core.facts import Encodes as Encodes
  from fedjax_mem.core.facts import Fact as Fact
  from fedjax_mem.core.facts import Integers as Integers
  from fedjax_mem.core.facts import Looks as Looks
  from fedjax_mem.core.facts import Masks as Masks
  from fedjax_mem.core.facts import Noises as Noises
  from fedjax_mem.core.facts import Personal as Personal
  from fedjax_mem.core.facts import Pools as Pools
  from fedjax_mem.core.facts import Prepares as Prepares
  from fedjax_mem.core.facts import Rescales as Rescales
  from fedjax_mem.core.facts import Rule as Rule
  from fedjax_mem.core.facts import Scores as Scores
  from fedjax_mem.core.facts import Trains as Trains
  from fedjax_mem.core.facts import Weighs as Weighs
  from fedjax_mem.core.facts import Weighted as Weighted
  from fedjax_mem.core.facts import Withholds as Withholds
  from fedjax_mem.core.layer import IncompatibleStages as IncompatibleStages
  from fedjax_mem.core.layer import Layer as Layer
  from fedjax_mem.core.layer import Pool as Pool
  from fedjax_mem.core.layer import Stage as Stage
  from fedjax_mem.core.mechanism import Mechanism as Mechanism
  from fedjax_mem.core.message import Covered as Covered
  from fedjax_mem.core.message import Draw as Draw
  from fedjax_mem.core.message import Mean as Mean
  from fedjax_mem.core.message import Member as Member
  from fedjax_mem.core.message import Message as Message
  from fedjax_mem.core.message import Metrics as Metrics
  from fedjax_mem.core.message import State as State
  from fedjax_mem.core.message import Task as Task
  from fedjax_mem.core.message import Total as Total
  from fedjax_mem.core.message import scalar_member as scalar_member
  from fedjax_mem.core.round import Round as Round
  from fedjax_mem.core.round import compose as compose
  from fedjax_mem.core.running import Running as Running
  from fedjax_mem.core.tree import Tree as Tree

# The same names by the module that each is in.
_MODULES = {
  'accumulated': ('Accumulated',),
  'bound': (
    'IN_ROUND',
    'UNKNOWN',
    'Bound',
    'known',
    'rounding',
  ),
  'context': ('Context',),
  'examples': (
    'Batch',
    'Examples',
    'Population',
    'Shape',
    'Transform',
    'shape_of',
    'stack_clients',
  ),
  'facts': (
    'Attacks',
    'Bounds',
    'Broadcasts',
    'Draws',
    'Encodes',
    'Fact',
    'Integers',
    'Looks',
    'Masks',
    'Noises',
    'Personal',
    'Pools',
    'Prepares',
    'Rescales',
    'Rule',
    'Scores',
    'Trains',
    'Weighs',
    'Weighted',
    'Withholds',
  ),
  'layer': (
    'IncompatibleStages',
    'Layer',
    'Pool',
    'Stage',
  ),
  'mechanism': ('Mechanism',),
  'message': (
    'Covered',
    'Draw',
    'Mean',
    'Member',
    'Message',
    'Metrics',
    'State',
    'Task',
    'Total',
    'scalar_member',
  ),
  'round': (
    'Round',
    'compose',
  ),
  'running': ('Running',),
  'tree': ('Tree',),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
  globals()[name] = value  # asked for once
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
