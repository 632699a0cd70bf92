"""Mechanisms of noise, one a file: what a round costs, and the noise itself.

A configuration names one by its name here, or by 'package.module:Class'.
"""

import dataclasses
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.core.mechanism import Mechanism, path
from fedjax_mem.mechanisms.discrete_gaussian import DiscreteGaussian
from fedjax_mem.mechanisms.gaussian import Gaussian
from fedjax_mem.mechanisms.laplace import Laplace
from fedjax_mem.mechanisms.matrix import Matrix
from fedjax_mem.mechanisms.skellam import Skellam
from fedjax_mem.mechanisms.tree import Tree

MECHANISMS: dict[str, type[Mechanism]] = {
  'gaussian': Gaussian,
  'laplace': Laplace,
  'discrete_gaussian': DiscreteGaussian,
  'skellam': Skellam,
  'tree': Tree,
  'matrix': Matrix,
}


def name(mechanism: Mechanism) -> str:
  """Returns the name of a mechanism here, or 'package.module:Class'."""
  kind = type(mechanism)
  return next((key for key, value in MECHANISMS.items() if value is kind), path(mechanism))


# What a clip to one norm bounds.
_CLIPPED = {'l1': ('l1', 'l2', 'linf'), 'l2': ('l2', 'linf')}
_OTHERS = {'l1': 'central or local', 'l2': 'laplace or local_laplace'}


def find(
  mechanism: Any, norm: str | None = None, integers: bool | None = None, fresh: bool = False
) -> type[Mechanism]:
  """Returns the class of a mechanism: given as it is, by its name, or as 'package.module:Class'.

  Args:
    mechanism: which.
    norm: 'l1' or 'l2': what the updates that it is for are clipped to; None: whatever.
    integers: whether it is for integers; None: whatever.
    fresh: refuse noise that is correlated over rounds.

  Raises:
    ValueError: there is none, or one for something else.
  """
  found = mechanism
  if isinstance(mechanism, str):
    if ':' not in mechanism:
      validate.one_of(MECHANISMS, mechanism=mechanism)
    found = MECHANISMS.get(mechanism) or validate.imported('class', mechanism=mechanism)
  if not (isinstance(found, type) and issubclass(found, Mechanism)):
    raise ValueError(
      f"mechanism must be one of {tuple(MECHANISMS)!r} or 'package.module:Class' of a Mechanism, "
      f'got {mechanism!r}.'
    )
  needs = found.norm if isinstance(found.norm, tuple) else (found.norm,)
  if norm is not None and not set(needs) <= set(_CLIPPED[norm]):
    raise ValueError(
      f'mechanism must be noise scaled to the {norm.upper()} norm under such a clip, got '
      f'{mechanism!r}, which is scaled to {" and ".join(needs)}: use {_OTHERS[norm]}.'
    )
  if integers is not None and found.integers != integers:
    raise ValueError(
      f'mechanism must be noise for {"integers" if integers else "floats"} here, got {mechanism!r}.'
    )
  if fresh and found.correlated:
    raise ValueError(f'mechanism must be fresh in every round here, got {mechanism!r}.')
  return found


def make(kind: type[Mechanism], noise_multiplier: float, **known: Any) -> Mechanism | None:
  """Returns the mechanism of that size, given what it takes of what is `known`; None: no noise."""
  if not noise_multiplier:
    return None
  takes = {x.name for x in dataclasses.fields(kind)}
  return kind(noise_multiplier, **{k: v for k, v in known.items() if k in takes})


__all__ = (
  'MECHANISMS',
  'DiscreteGaussian',
  'Gaussian',
  'Laplace',
  'Matrix',
  'Skellam',
  'Tree',
  'find',
  'make',
  'name',
)
