"""Mechanisms of noise, one a file: how the noise is drawn, and what a round costs.

A configuration names a mechanism by its key in `MECHANISMS`, or by 'package.module:Class'.
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

# Ledgers name classes by their paths: those of this package are found without an import.
_PATHS = {f'{kind.__module__}:{kind.__qualname__}': kind for kind in MECHANISMS.values()}


def name(mechanism: Mechanism) -> str:
  """Returns the key of a mechanism in `MECHANISMS`, or 'package.module:Class'.

  >>> name(Gaussian(1.0))
  'gaussian'
  """
  kind = type(mechanism)
  return next((key for key, value in MECHANISMS.items() if value is kind), path(mechanism))


# The norms that a clip to one norm bounds.
_CLIPPED = {'l1': ('l1', 'l2', 'linf'), 'l2': ('l2', 'linf')}
_OTHERS = {'l1': 'central or local', 'l2': 'laplace or local_laplace'}


def find(
  mechanism: Any, norm: str | None = None, integers: bool | None = None, fresh: bool = False
) -> type[Mechanism]:
  """Returns the class of a mechanism, given as a class, a name or 'package.module:Class'.

  >>> find('laplace').__name__, find('fedjax_mem.mechanisms.laplace:Laplace').__name__
  ('Laplace', 'Laplace')

  Args:
    mechanism: the class or its name.
    norm: the norm that the updates are clipped to, 'l1' or 'l2'; None: any.
    integers: whether the noise must be for integers, or for floats; None: either.
    fresh: refuse noise that is correlated over rounds.

  Raises:
    ValueError: there is no such mechanism, or it does not meet these conditions.
  """
  found = mechanism
  if isinstance(mechanism, str):
    if ':' not in mechanism:
      validate.one_of(MECHANISMS, mechanism=mechanism)
    known = {**MECHANISMS, **_PATHS}.get(mechanism)
    found = known or validate.imported('class', mechanism=mechanism)
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
  """Returns a mechanism with those arguments of `known` that its class takes, or None for no noise.

  >>> make(Skellam, 2.0, shares=10, dimension=1000, restart=8)
  Skellam(noise_multiplier=2.0, shares=10, dimension=1000)
  >>> make(Gaussian, 0.0) is None
  True

  Args:
    kind: class of the mechanism.
    noise_multiplier: size of the noise over the norm bound, >= 0; 0: no noise.
    **known: arguments of mechanisms; `kind` gets those that are fields of its own.
  """
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
