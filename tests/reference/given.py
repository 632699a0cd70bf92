"""A round in which each client sends an update that the test gives, and what is released of it."""

import jax
import jax.numpy as jnp
import numpy as np
from reference import tiny

from fedjax_mem.core import Layer, Message, Stage, Trains, compose, keys, stack_clients, tree
from fedjax_mem.engine import simulate
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal


def algorithm() -> Layer:
  """Returns the algorithm whose clients send their one example; params become what is released."""

  def client(ctx, task, state):
    del ctx
    example = task.data.take(jnp.zeros(1, jnp.int32))
    update = jax.tree.map(lambda x: x[0], example)
    return Message(update, task.data.count.astype(jnp.float32), {}), state, {}

  server = Stage(lambda ctx, message, state: (message.update, state, {}))
  return Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=server)


def population(updates):
  """Returns the population of clients whose one example is a row of `updates`, name -> [N, ...]."""
  n = len(next(iter(updates.values())))
  return stack_clients([{k: v[i : i + 1] for k, v in updates.items()} for i in range(n)])


def build(updates, *layers, select=None, weigh=None, execution='vmap', seed=3):
  """Returns the simulation of layers around given updates; the divisor is 1: sums are released."""
  pop = population(updates)
  n = len(pop.count)
  params = {k: jnp.zeros(v.shape[1:], v.dtype) for k, v in pop.arrays.items()}
  select = round_robin(n, n) if select is None else select
  round = compose(algorithm(), select, equal(1.0) if weigh is None else weigh, *layers)
  mode = tiny.MODES[execution]
  return simulate(round, params, pop, seed=seed, noise_seed=seed, execution=mode, max_rounds=16)


def play(sim, rounds=1, state=None, updates=None, seed=None):
  """Returns (released trees of each round, metrics of each round, last state); compiles once."""
  pop = sim.population if updates is None else population(updates)
  used = tiny.rooted(sim.seed if seed is None else seed)
  state = sim._init(tree.zeros(sim.params), pop, *used) if state is None else state
  released, metrics = [], []
  for _ in range(rounds):
    state, seen, _ = sim.segment(state, pop, *used, np.int32(1))
    released.append(tiny.host(state.params))
    metrics.append({k: np.array(v)[0] for k, v in seen.open(1).items()})
  return released, metrics, tiny.host(state)


def sums(sim, rounds=1, **kwargs):
  """Returns what is released in each round, as float64 vectors [rounds, D]."""
  released, _, _ = play(sim, rounds, **kwargs)
  return np.stack([tiny.vec(x) for x in released])


def silence(size=20_000, clients=3):
  """Returns updates of zeros: what is released is noise alone."""
  return {k: np.zeros((clients, size // 2), np.float32) for k in 'ab'}


def server_key(name, round=0, seed=3):
  """Returns the key of a layer's server side."""
  layer = keys.layer_key(keys.seed_key(np.uint32(seed)), np.int32(round), name)
  return keys.role_key(layer, 'server')
