"""One round as a plain Python loop over clients, op by op: what the engine must compute."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Examples, Member, State, Task, keys, tree


class Played(NamedTuple):
  """What a round gave: the new state, and each client's message as it left the client."""

  state: State
  messages: list
  dropped: list


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
  root, round = keys.seed_key(np.uint32(seed)), state.round
  servers, cohort, like = dict(state.servers), None, {}

  def ctx(layer, role, me=None):
    base = keys.layer_key(root, round, layer.name)
    client = me.id if role == 'client' else None
    key = keys.role_key(base, role, client)
    common = keys.role_key(base, 'common')
    known = like.get(layer.name)
    return Context(key, common, round, me, cohort, state.params, servers[layer.name], known)

  chosen = next(x for x in layers if x.select is not None)
  cohort, servers[chosen.name], _ = chosen.select.apply(
    ctx(chosen, 'select'), state.clients[chosen.name], servers[chosen.name]
  )
  members = [jax.tree.map(lambda x, i=i: x[i], cohort) for i in range(len(cohort.id))]
  members = [m for m in members if bool(m.real)]
  cohort = _stack(members)
  took = [bool(m.arrived) for m in members]
  values: list[Any] = [_task(state.params, population, m) for m in members]
  rows = [
    {k: jax.tree.map(lambda x, m=m: x[m.id], t) for k, t in state.clients.items()} for m in members
  ]
  new = [{} for _ in members]
  for layer in layers:
    if layer.traits.kind == 'message':
      like[layer.name] = tree.shapes(values[0])
    if layer.stacked:
      cohort = cohort._replace(arrived=jnp.array(took))
      whole, own, _ = layer.client.apply(
        ctx(layer, 'cohort', cohort), _stack(values), _stack([r[layer.name] for r in rows])
      )
      for i in range(len(members)):
        values[i], new[i][layer.name] = jax.tree.map(lambda x, i=i: x[i], (whole, own))
    else:
      for i, m in enumerate(members):
        values[i], new[i][layer.name], _ = layer.client.apply(
          ctx(layer, 'client', m), values[i], rows[i][layer.name]
        )
    if layer.traits.kind == 'algorithm':
      for i, value in enumerate(values):
        if not bool(tree.finite(value)):
          took[i], values[i] = False, tree.zeros(value)
  took = [on and bool(tree.finite(v)) for on, v in zip(took, values, strict=True)]
  cohort = cohort._replace(arrived=jnp.array(took))
  value = tree.zeros(values[0])
  for on, message in zip(took, values, strict=True):
    value = tree.add(value, message) if on else value
  for layer in reversed(layers):
    value, servers[layer.name], _ = layer.server.apply(
      ctx(layer, 'server'),
      value,
      state.servers[layer.name] if layer is not chosen else servers[layer.name],
    )
  tables = dict(state.clients)
  for i, m in enumerate(members):
    if took[i] and bool(tree.finite(new[i])):
      tables = jax.tree.map(lambda t, x, m=m: t.at[m.id].set(x), tables, new[i])
  lost = [int(m.id) for m, on in zip(members, took, strict=True) if not on]
  return Played(State(round + 1, value, tables, servers), values, lost)


def _task(params, population, member: Member) -> Task:
  count = population.count[member.id]
  capacity = int(population.count.max())
  data = Examples(
    population.arrays, population.index, population.start[member.id], count, count, capacity
  )
  return Task(params, data)


def _stack(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)
