"""A tiny problem that the tests share: ten ragged clients, a logistic model, a rota of cohorts."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Draw, Layer, compose, stack_clients
from fedjax_mem.engine import Execution, Simulation, simulate
from fedjax_mem.optim import sgd
from fedjax_mem.stages.algorithm import fedsgd
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

N, C, FEATURES, CLASSES, ROUNDS, SEED = 10, 6, 5, 3, 4, 11
COUNTS = (3, 9, 5, 4, 7, 8, 3, 6, 9, 4)

# As many devices as the tests run on; a cohort of 6 is padded to 8 by chunks of 4, and on each.
DEVICES = max(1, jax.config.jax_num_cpu_devices)
SOME = min(4, DEVICES)
MODES = {
  'vmap': Execution(mode='vmap', devices=1, pool=False),
  'loop': Execution(mode='loop', devices=1, pool=False),
  'chunk': Execution(mode='chunk', chunk=4, devices=1, pool=False),
  'vmap on 2': Execution(mode='vmap', devices=2, pool=False),
  'chunk on devices': Execution(mode='chunk', chunk=4 // SOME, devices=SOME, pool=False),
  'loop on devices': Execution(mode='loop', devices=DEVICES, pool=False),
  'divided on devices': Execution(
    mode='chunk', chunk=2, devices=SOME, pool=False, data='divided', slack=1
  ),
}
POOLED = {
  'pooled': Execution(mode='vmap', devices=1, pool=True),
  'pooled on devices': Execution(mode='loop', devices=SOME, pool=True),
  'pooled, divided on devices': Execution(mode='loop', devices=SOME, pool=True, data='divided'),
}


def client_data(counts=COUNTS, seed=0, features=FEATURES) -> list[dict[str, np.ndarray]]:
  """Returns each client's examples: a shift of its own, labels of a common linear rule."""
  rng = np.random.default_rng(seed)
  rule = rng.normal(size=(features, CLASSES))
  clients = []
  for n in counts:
    x = rng.normal(size=(n, features)) + rng.normal(size=features)
    y = np.argmax(x @ rule + rng.normal(size=(n, CLASSES)), axis=1)
    clients.append({'x': x.astype(np.float32), 'y': y.astype(np.int32)})
  return clients


DATA = client_data()


def population(data=None):
  """Returns the population of `data`, by default of the ten clients."""
  return stack_clients(DATA if data is None else data)


def with_client(pop, client: int, x=None, count=None):
  """Returns the population with a client's features all `x`, or its number of examples `count`."""
  start, n = int(pop.start[client]), int(pop.count[client])
  if x is not None:
    new = pop.arrays['x'].at[start : start + n].set(x)
    pop = dataclasses.replace(pop, arrays=pop.arrays | {'x': new})
  if count is not None:
    pop = dataclasses.replace(pop, count=pop.count.at[client].set(count))
  return pop


def initial(features=FEATURES) -> dict[str, jax.Array]:
  """Returns parameters that are not zero, drawn by NumPy."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.1, jnp.float32)
  return {'b': draw(CLASSES), 'w': draw(features, CLASSES)}


def loss(params, batch, key=None) -> jax.Array:
  """Returns the cross-entropy of a logistic model, [B]."""
  del key
  logits = batch['x'] @ params['w'] + params['b'][None]
  picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch['y'][:, None], 1)
  return -picked[:, 0]


def algorithm(rate: float = 0.5) -> Layer:
  """Returns an algorithm without randomness: one gradient a client."""
  return fedsgd(loss, batch_size=16, server_optimizer=sgd(rate))


def is_lost(client, round):
  """Returns whether a client of the rota drops out in a round (NumPy or jax)."""
  return (client + round) % 4 == 0


def rota(num_clients: int = N, cohort_size: int = C) -> Layer:
  """Returns a sampler without randomness: clients in turn, some of which drop out."""
  stays = lambda ctx, cohort: cohort.arrived & ~is_lost(cohort.id, ctx.round)
  change = lambda ctx, cohort: cohort._replace(arrived=stays(ctx, cohort))
  return changed(round_robin(num_clients, cohort_size), change)


def changed(layer: Layer, change) -> Layer:
  """Returns the layer whose cohort is changed after it was drawn: change(ctx, cohort) -> cohort."""

  def apply(ctx, draw, state):
    draw, state, metrics = layer.select.apply(ctx, draw, state)
    return draw._replace(cohort=change(ctx, draw.cohort)), state, metrics

  return layer._replace(select=layer.select._replace(apply=apply))


def drawn(layer: Layer, ctx, state=(), table=None, cohort=None):
  """Returns (cohort, state, metrics) of a select side, after a cohort was drawn or before."""
  draw, state, metrics = layer.select.apply(ctx._replace(table=table), Draw(None, cohort), state)
  return draw.cohort, state, metrics


def layers(*message: Layer) -> tuple[Layer, ...]:
  """Returns a whole round without randomness around layers that work on messages."""
  return compose(algorithm(), rota(), equal(), *message)


def build(round, execution='vmap', seed=SEED, pop=None, params=None, **kwargs) -> Simulation:
  """Returns the simulation of the tiny problem."""
  execution = (MODES | POOLED).get(execution, execution)
  params = initial() if params is None else params
  pop = population() if pop is None else pop
  kwargs.setdefault('noise_seed', seed)  # repeatable, and that of a run without a secret root
  return simulate(round, params, pop, seed=seed, execution=execution, max_rounds=8, **kwargs)


def execute(sim: Simulation, rounds=ROUNDS, seed=None, pop=None, state=None, params=None):
  """Returns (state, metrics) as NumPy copies; neither seed nor population compiles anew."""
  used = rooted(sim.seed if seed is None else seed)
  pop = sim.population if pop is None else pop
  if state is None:
    state = sim._init(initial() if params is None else params, pop, *used)
  state, metrics, done = sim.segment(state, pop, *used, np.int32(rounds))
  return host(state), {k: np.array(v)[: int(done)] for k, v in metrics.open(1).items()}


def rooted(seed):
  """Returns (seed, root) of a run whose noise has the seed's own root."""
  return np.uint32(seed), np.array([0, seed], np.uint32)  # `keys.open_root`, also while tracing


def host(tree):
  """Returns copies on the host (a view of a donated buffer would change)."""
  return jax.tree.map(np.array, tree)


def vec(tree) -> np.ndarray:
  """Returns all leaves as one float64 vector, in the order of the tree."""
  return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def assert_same_bits(a, b) -> None:
  """Fails unless two trees agree in structure, dtypes and every bit; names the leaf."""
  a, b = host(a), host(b)
  chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
  chex.assert_trees_all_equal(a, b)


def assert_close(a, b, atol=2e-6) -> None:
  """Fails unless two trees agree up to the order of their sums; integers exactly."""
  a, b = host(a), host(b)
  chex.assert_trees_all_equal_structs(a, b)
  chex.assert_trees_all_equal_dtypes(a, b)
  whole = lambda t: [x for x in jax.tree.leaves(t) if not np.issubdtype(x.dtype, np.inexact)]
  chex.assert_trees_all_equal(whole(a), whole(b))
  chex.assert_trees_all_close(a, b, rtol=atol, atol=atol)
