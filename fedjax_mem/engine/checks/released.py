"""No release without noise: every sum is noised, and no state is kept of a sum before its noise."""

from typing import Any

import jax

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Message,
  Noises,
  Round,
  State,
  Tree,
  Withholds,
  shapes,
  tree,
)


def check(layers: Round, specs: dict[str, Tree], sent: Message, state: State) -> None:
  """Raises `IncompatibleStages` if anything is released without noise.

  Args:
    layers: of the round.
    specs: for each layer after the algorithm, the shapes of what its client side receives.
    sent: shapes of what leaves the last client side.
    state: shapes of the state before the first round.
  """
  for layer, side, noise in layers.having(Noises):
    if layer.name not in specs:
      continue
    if noise.mechanism.correlated:
      _check_replayed(layer, side, noise, specs[layer.name], state.servers[layer.name])
    if noise.trust == 'local' or side == 'server':
      _check_entering(layers, layer, specs)
    _check_beside(layers, layer, specs, sent, state.servers)
    if noise.trust == 'central':
      _check_memories(layers, layer, state.clients, share=side == 'client')


def _check_replayed(layer: Layer, side: str, noise: Noises, spec: Any, state: Tree) -> None:
  """Raises where noise that is kept in a state could not be drawn again from the secret root."""
  wanted = jax.eval_shape(lambda: noise.mechanism.init(spec.update))
  if side != 'server' or not shapes.same(state, wanted):
    raise IncompatibleStages(
      f'the noise of {layer.name!r} is correlated, and no checkpoint may hold it: it must be on a '
      'server side, whose state must be the state of its mechanism and nothing else.'
    )


def _check_entering(layers: Round, layer: Layer, specs: dict[str, Tree]) -> None:
  """Raises where a value that enters the clip is not a float."""
  whole = tree.not_floats(specs[layer.name].update)
  if whole:
    raise IncompatibleStages(
      f'{layer.name!r} clips arrays of floats, and {layers.before(layer)[-1].name!r} before it '
      f'leaves {whole[0]}: put {layer.name!r} before the layer that encodes.'
    )


def _sums(layers: Round, specs: dict[str, Tree], sent: Message) -> list[tuple[Layer, list[str]]]:
  """Returns (layer, names) of all that is summed beside the update without noise."""
  found: list[tuple[Layer, list[str]]] = []
  known: set[str] = set()
  start = layers.place(layers.algorithm)
  for i, x in enumerate(layers[start:], start):
    leaves = specs[layers[i + 1].name] if i + 1 < len(layers) else sent
    extra = sorted(set(leaves.aux) - known)
    known = set(leaves.aux)
    noise = x.fact(Noises)
    covered = noise is not None and noise.trust == 'central'
    if extra and not covered:
      found.append((x, extra))
  return found


def _check_beside(
  layers: Round,
  layer: Layer,
  specs: dict[str, Tree],
  sent: Message,
  servers: dict[str, Tree],
) -> None:
  """Raises where the noise does not cover a sum, or a state that the server keeps."""
  after = [x.name for x in layers.after(layer)]
  noise: Any = layer.fact(Noises)
  central = noise.trust == 'central'
  for x, extra in _sums(layers, specs, sent):
    if x.name not in after:
      raise IncompatibleStages(
        f'{layer.name!r} adds noise to the update only, and {x.name!r} sums {extra!r} beside it '
        'without noise: use a layer that sends its update alone.'
      )
    if central:
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and sums {extra!r} without noise: remove it.'
      )
  for x in layers.after(layer):
    noised = x.server is None or x.server.fact(Noises) is not None
    if central and not noised and jax.tree.leaves(servers[x.name]):
      raise IncompatibleStages(
        f'{x.name!r} comes after {layer.name!r} and keeps a state on the server that is computed '
        f'before the noise is added: put {x.name!r} before {layer.name!r}.'
      )


def _check_memories(layers: Round, layer: Layer, tables: dict[str, Tree], share: bool) -> None:
  """Raises where a client's message reaches other clients' states, or arrivals can be counted."""
  for x in layers:
    if x.cohort is not None and jax.tree.leaves(tables[x.name]):
      raise IncompatibleStages(
        f'{layer.name!r} covers what a client changes in the sum, and {x.name!r} keeps a state of '
        'each client that its cohort side computes from the messages of all: what one client sent '
        f'would be in the later messages of others. Remove {x.name!r}, or its state.'
      )
  for x, _, _ in layers.having(Withholds):
    if not share or x is not layer:
      raise IncompatibleStages(
        f'{x.name!r} withholds the sum where few clients arrive, which shows how many did, and '
        f'{layer.name!r} has to hide that: remove {x.name!r}.'
      )
