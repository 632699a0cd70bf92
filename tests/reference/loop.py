"""One round as a plain Python loop over clients, op by op: what the engine must compute."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Context,
  Draw,
  Examples,
  Member,
  Message,
  Noises,
  Round,
  State,
  Task,
  Trains,
  keys,
  tree,
)


class Played(NamedTuple):
  """What a round gave.

  Attributes:
    state: the new state.
    messages: each client's message as it left the client.
  """

  state: State
  messages: list


def _eagerly(function):
  """Returns the function with every loop in it a Python loop, every operation done at once."""

  @functools.wraps(function)
  def eager(*args):
    with jax.disable_jit():
      return function(*args)

  return eager


@_eagerly
def plain_round(layers, state: State, population, seed: int) -> Played:
  """Returns the round after `state`, with no jit, no vmap, no padding and no mesh."""
  run = _Round(layers, state, population, seed)
  run.select()
  values, rows, took = run.clients()
  run.cohort = run.cohort._replace(arrived=jnp.array(took))
  total = tree.zeros(values[0])
  for on, message in zip(took, values, strict=True):
    total = tree.add(total, message) if on else total
  params = run.server(total)
  tables = dict(state.clients)
  for on, member, row in zip(took, run.members, rows, strict=True):
    if on and bool(tree.finite(row)):
      tables = jax.tree.map(lambda t, x, i=member.id: t.at[i].set(x), tables, row)
  return Played(State(state.round + 1, params, tables, run.servers), values)


class _Round:
  """A round that is being played: who is in it and what the server knows."""

  def __init__(self, layers, state: State, population, seed: int):
    self.layers, self.state, self.population = layers, state, population
    self.root, self.servers = keys.seed_key(np.uint32(seed)), dict(state.servers)
    self.cohort: Any = None
    self.members: list[Member] = []
    self.specs: dict[str, Any] = {}

  def context(self, layer, role: str, client=None) -> Context:
    base = keys.layer_key(self.root, self.state.round, layer.name)
    return Context(
      key=keys.role_key(base, role, client.id if role == 'client' else None),
      round_key=keys.role_key(base, 'round'),
      round=self.state.round,
      client=client,
      cohort=self.cohort,
      params=self.state.params,
      server_state=self.servers[layer.name],
      spec=self.specs.get(layer.name),
    )

  def bounded(self, layer, side: str, value, client=None) -> Context:
    """Returns the context of a side of messages, with its bound if it adds noise."""
    ctx = self.context(layer, side, client)
    if layer.sides[side].fact(Noises) is None or not isinstance(value, Message):
      return ctx
    known = {'servers': self.servers, 'round': self.state.round, 'params': self.state.params}
    return ctx._replace(bound=Round(self.layers).bound(layer, side, self.specs, **known))

  def select(self) -> None:
    draw = Draw()
    for layer in (x for x in self.layers if x.select is not None):
      ctx = self.context(layer, 'select')._replace(table=self.state.clients[layer.name])
      draw, self.servers[layer.name], _ = layer.select.apply(ctx, draw, self.servers[layer.name])
    drawn = draw.cohort
    rows = [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(len(drawn.id))]
    self.members = [m for m in rows if bool(m.real)]
    self.cohort = _stack(self.members)

  def clients(self) -> tuple[list, list, list]:
    """Returns (messages, new rows of the tables, whether each client's message counts)."""
    took = [bool(m.arrived) for m in self.members]
    values = [self._task(m) for m in self.members]
    tables = self.state.clients
    rows = [jax.tree.map(lambda t, i=m.id: t[i], tables) for m in self.members]
    for layer in self.layers:
      if isinstance(values[0], Message):
        self.specs[layer.name] = tree.shapes(values[0])
      for side in ('client', 'cohort'):
        if side not in layer.sides:
          continue
        own = [row[layer.name] for row in rows]
        if side == 'cohort':
          self.cohort = self.cohort._replace(arrived=jnp.array(took))
          made = layer.cohort.apply(self.context(layer, 'cohort'), _stack(values), _stack(own))[:2]
          made = [jax.tree.map(lambda x, i=i: x[i], made) for i in range(len(own))]
        else:
          made = [
            layer.client.apply(self.bounded(layer, 'client', value, m), value, state)[:2]
            for m, value, state in zip(self.members, values, own, strict=True)
          ]
        values = [value for value, _ in made]
        rows = [row | {layer.name: new} for row, (_, new) in zip(rows, made, strict=True)]
      if layer.fact(Trains) is not None:
        fine = [bool(tree.finite(value)) for value in values]
        values = [v if ok else tree.zeros(v) for ok, v in zip(fine, values, strict=True)]
        took = [a and b for a, b in zip(took, fine, strict=True)]
    took = [on and bool(tree.finite(v)) for on, v in zip(took, values, strict=True)]
    return values, rows, took

  def server(self, value):
    """Returns the new parameters; server states are replaced."""
    sides = [x for x in reversed(self.layers) if x.server is not None]
    # Before any of them has moved its state on, by which an adaptive bound is known.
    noisy = {x.name: self.bounded(x, 'server', value) for x in sides}
    for layer in sides:
      ctx = self.context(layer, 'server')._replace(bound=noisy[layer.name].bound)
      value, self.servers[layer.name], _ = layer.server.apply(ctx, value, self.servers[layer.name])
    return value

  def _task(self, member: Member) -> Task:
    pop = self.population
    count = pop.count[member.id]
    data = Examples(pop.arrays, pop.index, pop.start[member.id], count, count, int(pop.count.max()))
    return Task(self.state.params, data)


def _stack(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)
