"""Correlated noise is not kept on the disk: its state is drawn again from the secret root.

Who has the noise of a run can subtract it from what the run has released. So a checkpoint holds the
state without it, and a resumed run, which has the root, computes it: as many draws as rounds.
"""

import functools
from typing import Any

import jax

from fedjax_mem.core import Layer, Noises, Round, State, Tree, keys
from fedjax_mem.engine.clients import everywhere
from fedjax_mem.engine.setting import Setting


def noise_layers(layers: Round) -> list[tuple[Layer, str, Noises]]:
  """Returns (layer, side, fact) wherever noise depends on that of earlier rounds."""
  return [x for x in layers.having(Noises) if x[2].mechanism.correlated]


def without(layers: Round, state: State) -> State:
  """Returns the state, or a prefix of its tree, with () in place of each state of noise."""
  if not isinstance(state.servers, dict):  # where all that the server keeps is alike
    return state
  bare: dict[str, Tree] = {x.name: () for x, _, _ in noise_layers(layers)}
  return state._replace(servers={**state.servers, **bare})


def drawn_again(setting: Setting, state: State, root: Any) -> State:
  """Returns the state with the noise of its rounds so far; the reverse of `without`."""
  layers, made = setting.layers, dict(state.servers)
  draw: Any
  for x, side, noise in noise_layers(layers):
    bound = layers.bound(x, side, setting.specs)
    like = setting.specs[x.name].update
    draw = functools.partial(_drawn, x.name, side, noise, like, bound)
    if setting.shards is not None:  # as in a round, each device of a group draws all of it
      draw = everywhere(draw, setting.layout.mesh)
    made[x.name] = draw(state.round, root)
  return state._replace(servers=made)


def _drawn(
  name: str, side: str, noise: Noises, like: Tree, bound: Any, rounds: jax.Array, root: Any
) -> Tree:
  """Returns the state of a layer's noise after so many rounds."""

  def key(round: Any) -> jax.Array:
    return keys.role_key(keys.layer_key(keys.root_key(root), round, name), side)

  return noise.mechanism.replayed(key, like, bound, rounds)
