"""A round in parts: the draw, each client, and the rest give the round of one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem import engine
from fedjax_mem.core import IncompatibleStages, Layer, Stage, compose, tree
from fedjax_mem.stages import aggregate, weigh


def remembering():
  """Returns a layer of both kinds of states, both of which change what is sent."""

  def client(ctx, message, state):
    update = tree.scale(1 + 0.1 * state, message.update)
    return message._replace(update=update), state + 1, {'seen': state}

  def server(ctx, message, state):
    return message._replace(update=tree.scale(1 + 0.1 * state, message.update)), state + 1, {}

  start = lambda ctx: jnp.float32(0)
  return Layer('remembering', client=Stage(client, start), server=Stage(server, start))


@functools.cache
def simulation():
  pop = tiny.population(tiny.client_data((3, 9) * 5))  # of two shapes: each is compiled
  return tiny.build(tiny.layers(remembering()), 'loop', pop=pop)


@functools.cache
def compiled():
  """Returns the parts: states of a client, the draw, one client, the end."""
  parts = engine.first_rows, engine.drawn, engine.one_client, engine.settled
  options = simulation().options
  return [
    jax.jit(functools.partial(part, simulation().setting), compiler_options=options)
    for part in parts
  ]


def parted(sim, rounds, order=lambda ids: ids):
  """Returns (state, client -> its states, metrics) of rounds whose parts are called one by one."""
  pop = sim.population
  seed, root = tiny.rooted(sim.seed)
  begin, draw, one, end = compiled()
  start, count, index, arrays = jax.device_get((pop.start, pop.count, pop.index, pop.arrays))
  state = engine.first_state(sim.setting, tiny.initial(), pop, seed, root)
  rows = {i: begin(tiny.initial(), jnp.int32(i), seed, root) for i in range(tiny.N)}
  for _ in range(rounds):
    cohort, servers, _ = jax.device_get(draw(state, pop, seed, root))
    told = engine.Told(state.round, state.params, servers)
    made = {}
    for c in order(range(len(cohort.id))):
      i = int(cohort.id[c])
      own = {k: x[index[start[i] : start[i] + count[i]]] for k, x in arrays.items()}
      me = jax.tree.map(lambda x: x[c], cohort)  # noqa: B023
      made[c] = jax.device_get(one(told, own, count[i], me, rows[i], seed, root))
    stack = [made[c] for c in range(len(cohort.id))]
    pile = lambda *x: np.stack(x)
    given = engine.Given(
      jax.tree.map(pile, *(x.message for x in stack)),
      np.stack([x.fine for x in stack]),
      jax.tree.map(pile, *(x.metrics for x in stack)),
    )
    counts = count[np.asarray(cohort.id)]
    state, metrics, kept = end(state, cohort, servers, given, counts, seed, root)
    for c, i in enumerate(np.asarray(cohort.id).tolist()):
      rows[i] = made[c].rows if kept[c] else rows[i]
  return state, rows, metrics


@pytest.mark.slow
def test_the_parts_are_the_round_bit_for_bit_with_each_clients_own_states():
  sim = simulation()
  whole, measured = tiny.execute(sim, 3)
  state, rows, metrics = parted(sim, 3)
  assert tree.size(tree.shapes(whole.params)) > 0
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
  own = [float(rows[i]['remembering']) for i in range(tiny.N)]
  assert own == whole.clients['remembering'].tolist() and len(set(own)) > 1
  for name, value in metrics.items():
    np.testing.assert_array_equal(np.asarray(value), measured[name][-1], err_msg=name)
  again = parted(sim, 3, lambda ids: reversed(ids))[0]
  for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_the_server_has_no_states_of_clients():
  sim = simulation()
  seed, root = tiny.rooted(sim.seed)
  state = engine.first_state(sim.setting, tiny.initial(), sim.population, seed, root)
  assert jax.tree.leaves(state.clients['remembering']) == []
  assert float(state.servers['remembering']) == 0


def test_a_client_that_would_be_asked_twice_is_refused():
  after = Layer('after', client=Stage(lambda ctx, message, state: (message, state, {})))
  both = lambda ctx, value, state: (value, state, {})
  twice = Layer('twice', client=Stage(both), cohort=Stage(both))
  alone = tiny.algorithm()
  for more, name in (((aggregate.median(), after), 'after'), ((twice,), 'twice')):
    layers = compose(alone, tiny.rota(), weigh.equal(), *more)
    with pytest.raises(IncompatibleStages, match=f'{name!r} needs messages of all clients'):
      engine.client_layers(layers)
  layers = compose(alone, tiny.rota(), weigh.equal(), aggregate.median())
  assert 'median' not in {x.name for x in engine.client_layers(layers)}
