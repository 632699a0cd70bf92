"""A round in which each client sends an update that the test gives, and what is released of it."""

import jax
import jax.numpy as jnp
import numpy as np
from reference import tiny

from fedjax_mem.core import Layer, Message, Stage, Traits, keys, onion, stack_clients
from fedjax_mem.engine import simulate
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal


def algorithm(updates, aux=None) -> Layer:
  """Returns the algorithm whose client i sends row i of `updates`; params become what is released."""

  def client(ctx, task, state):
    row = jax.tree.map(lambda x: x.at[ctx.me.id].get(mode='clip'), updates)
    return Message(row, task.data.count.astype(jnp.float32), dict(aux or {})), state, {}

  server = Stage(lambda ctx, message, state: (message.payload, state, {}))
  return Layer('algorithm', Stage(client), server, traits=Traits(kind='algorithm'))


def build(updates, *layers, select=None, weigh=None, execution='vmap', seed=3):
  """Returns the simulation of layers around given updates; the divisor is 1: sums are released."""
  updates = jax.tree.map(jnp.asarray, updates)
  n = jax.tree.leaves(updates)[0].shape[0]
  pop = stack_clients([{'x': np.ones((1, 1), np.float32)}] * n)
  params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), updates)
  select = round_robin(n, n) if select is None else select
  round = onion(algorithm(updates), select, equal(1.0) if weigh is None else weigh, *layers)
  return simulate(
    round, params, pop, seed=seed, execution=tiny.MODES[execution], max_rounds=16
  )


def play(sim, rounds=1, state=None):
  """Returns (released trees of each round, metrics of each round, last state)."""
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sim.params)
  state = sim.init(params) if state is None else state
  released, metrics = [], []
  for _ in range(rounds):
    state, seen = sim.run(state, 1)
    released.append(tiny.host(state.params))
    metrics.append({k: v[0] for k, v in seen.items()})
  return released, metrics, state


def sums(updates, *layers, rounds=1, **kwargs):
  """Returns what is released in each round, as float64 vectors [rounds, D]."""
  released, _, _ = play(build(updates, *layers, **kwargs), rounds)
  return np.stack([tiny.vec(x) for x in released])


def silence(size=20_000, clients=3):
  """Returns updates of zeros: what is released is noise alone."""
  return {'a': np.zeros((clients, size // 2), np.float32), 'b': np.zeros((clients, size // 2), np.float32)}


def server_key(name, round=0, seed=3):
  """Returns the key of a layer's server half."""
  layer = keys.layer_key(keys.seed_key(np.uint32(seed)), np.int32(round), name)
  return keys.role_key(layer, 'server')
