"""Models of which each client keeps a part (`Personal`): whose is scored and exported."""

from typing import Any

import jax

from fedjax_mem.core import Personal, Round, State, Tree
from fedjax_mem.engine.mesh import whole

NOTE = (
  "each client keeps batch normalisation of its own (model.statistics = 'local'): scores on the "
  'test set, and the parameters that the run leaves, have the mean of those of the clients that '
  'have taken part; what clients hold out is scored by their own'
)


def fact(layers: Round) -> Personal | None:
  """Returns what the round states of the parameters that clients keep; None: they keep none."""
  return next((found for _, _, found in layers.having(Personal)), None)


def rows(layers: Round, state: State) -> Tree:
  """Returns the states [N, ...] of the clients that keep a part of the parameters, or None."""
  return next((state.clients[layer.name] for layer, _, _ in layers.having(Personal)), None)


def scored(layers: Round, state: State) -> Any:
  """Returns the parameters that are scored: the server's, with the mean of what clients keep."""
  found = fact(layers)
  if found is None:
    return state.params
  kept = rows(layers, state)
  # Every device takes the mean of all rows: sums over devices would have an order of their own.
  mesh: Any = getattr(jax.tree.leaves(kept)[0].sharding, 'mesh', None)
  mean = lambda params, kept: found.mean(params, kept if mesh is None else whole(kept, mesh))
  return jax.jit(mean)(state.params, kept)
