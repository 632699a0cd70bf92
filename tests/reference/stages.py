"""Layers that only the tests use: hard cases that show what the protocol carries."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_mem.core import (
  Draws,
  Integers,
  Layer,
  Masks,
  Member,
  Message,
  Prepares,
  Stage,
  Trains,
  tree,
  validate,
)
from fedjax_mem.stages.select._base import drawing


def scaffold(loss, *, learning_rate: float, steps: int, num_clients: int) -> Layer:
  """Returns SCAFFOLD with full-batch local steps (Karimireddy et al. 2020, Algorithm 1, option II).

  Client state: its control variate. Server state, so `ctx.server_state`: the common one.
  """
  validate.function(loss=loss)
  validate.positive(learning_rate=learning_rate)
  validate.integer(steps=steps)
  validate.integer(num_clients=num_clients)

  def client(ctx, task, own):
    data = task.data
    positions = jnp.arange(data.capacity, dtype=jnp.int32)
    mask = positions < data.count
    batch, count = data.take(positions), jnp.maximum(mask.sum(dtype=jnp.float32), 1)
    mean = lambda p: jnp.where(mask, loss(p, batch, None), 0).sum() / count
    drift = tree.sub(ctx.server_state, own)
    step = lambda _, p: tree.sub(p, tree.scale(learning_rate, tree.add(jax.grad(mean)(p), drift)))
    update = tree.sub(task.params, jax.lax.fori_loop(0, steps, step, task.params))
    new = tree.sub(tree.scale(1 / (steps * learning_rate), update), drift)
    update = {'update': update, 'control': tree.sub(new, own)}
    return Message(update, data.count.astype(jnp.float32), {}), new, {}

  def server(ctx, message, control):
    # weight is the divisor: the clients that counted.
    part = tree.scale(message.weight / num_clients, message.update['control'])
    return tree.sub(ctx.params, message.update['update']), tree.add(control, part), {}

  zeros = lambda ctx: tree.zeros(ctx.params)
  return Layer(
    'algorithm',
    client=Stage(client, zeros, (Trains(),)),
    server=Stage(server, zeros),
  )


def top_k(fraction: float) -> Layer:
  """Returns error feedback around the largest entries, by sorting; client state: the error."""
  validate.probability(fraction=fraction)

  def client(ctx, message, error):
    del ctx
    flat, restore = ravel_pytree(tree.add(message.update, error))
    size = jnp.abs(flat)
    least = jnp.sort(size)[-max(1, int(fraction * flat.size))]
    sent = jnp.where(size >= least, flat, 0)
    on = message.weight > 0  # who takes no part sends nothing and keeps its error
    update = tree.keep(on, restore(sent))
    return message._replace(update=update), tree.select(on, restore(flat - sent), error), {}

  return Layer('compress', client=Stage(client, lambda ctx: tree.zeros(ctx.spec.update)))


def fixed_point(bits: int) -> Layer:
  """Returns the whole message as int32 multiples of 2**-bits, and back."""
  validate.integer(bits=bits)
  encode = lambda x: jnp.round(x * 2.0**bits).astype(jnp.int32)
  decode = lambda x: x.astype(jnp.float32) * 2.0**-bits
  return Layer(
    'encode',
    client=Stage(
      lambda ctx, message, state: (jax.tree.map(encode, message), state, {}),
      facts=(Integers(32, 2**15),),
    ),
    server=Stage(lambda ctx, message, state: (jax.tree.map(decode, message), state, {})),
  )


def mask() -> Layer:
  """Returns pairwise masks modulo 2**32 over every leaf, recovered for clients that drop out."""

  def shared_masks(ctx, client, others, like):
    """Returns the sum of the masks that `client` shares with the `others` [C] of the cohort."""
    leaves, structure = jax.tree.flatten(like)

    def one(total, row):
      other, on = row
      key = jax.random.fold_in(ctx.round_key, jnp.minimum(client, other))
      key = jax.random.fold_in(key, jnp.maximum(client, other))
      bits = [
        jax.random.bits(k, x.shape, jnp.uint32).astype(jnp.int32)
        for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
      ]
      sign = jnp.where(on, jnp.sign(other - client), 0)
      return tree.add(total, tree.scale(sign, structure.unflatten(bits))), None

    # One pair after another: a vmap over pairs inside the clients' vmap would hold [C, C, D].
    return jax.lax.scan(one, tree.zeros(like), (ctx.cohort.id, others))[0]

  def client(ctx, message, state):
    return tree.add(message, shared_masks(ctx, ctx.client.id, ctx.cohort.real, message)), state, {}

  def server(ctx, message, state):
    here, gone = ctx.cohort.arrived, ctx.cohort.real & ~ctx.cohort.arrived

    def one(total, row):
      client, on = row
      return tree.add(total, tree.keep(on, shared_masks(ctx, client, gone, message))), None

    left = jax.lax.scan(one, tree.zeros(message), (ctx.cohort.id, here))[0]
    return tree.sub(message, left), state, {'recovered': gone.sum(dtype=jnp.int32)}

  facts = (Integers(32, 2**15), Masks(32))
  return Layer('mask', client=Stage(client, facts=facts), server=Stage(server))


def secure_sum(bits: int = 16) -> tuple[Layer, ...]:
  """Returns fixed point under pairwise masks."""
  return fixed_point(bits), mask()


def median() -> Layer:
  """Returns the median of every coordinate, in every row of the stack that takes part."""

  def cohort(ctx, stack, state):
    on = ctx.cohort.arrived & (stack.weight > 0)
    count = jnp.maximum(on.sum(), 1)

    def middle(x):
      ordered = jnp.sort(jnp.where(on.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.inf), 0)
      both = ordered[(count - 1) // 2] + ordered[count // 2]
      return jnp.broadcast_to(both[None] / 2, x.shape)

    return stack._replace(update=tree.keep(on, jax.tree.map(middle, stack.update))), state, {}

  return Layer('robust', cohort=Stage(cohort))


def krum(byzantine: int) -> Layer:
  """Returns the one message nearest to its n - byzantine - 2 neighbours (Blanchard et al. 2017)."""
  validate.integer(at_least=0, byzantine=byzantine)

  def cohort(ctx, stack, state):
    on = ctx.cohort.arrived & (stack.weight > 0)
    flat = jax.vmap(lambda t: ravel_pytree(t)[0])(stack.update)
    gap = jnp.square(flat[:, None] - flat[None]).sum(-1)
    pairs = on[None] & ~jnp.eye(len(flat), dtype=bool)
    nearest = jnp.sort(jnp.where(pairs, gap, jnp.inf), 1)
    counted = jnp.arange(len(flat)) < on.sum() - byzantine - 2
    score = jnp.where(counted[None], nearest, 0).sum(1)
    best = jnp.argmin(jnp.where(on, score, jnp.inf))
    chosen = tree.keep(on & (jnp.arange(len(flat)) == best), stack)
    return chosen, state, {'chosen': ctx.cohort.id[best]}

  return Layer('robust', cohort=Stage(cohort))


def label_flip(attackers: int, num_classes: int) -> Layer:
  """Returns the task with the labels of the clients 0 … attackers - 1 moved on by one class."""
  validate.integer(attackers=attackers)
  validate.integer(num_classes=num_classes)

  def client(ctx, task, state):
    bad = ctx.client.id < attackers
    flip = lambda b: b | {'y': jnp.where(bad, (b['y'] + 1) % num_classes, b['y'])}
    return task._replace(data=task.data.map(flip)), state, {}

  return Layer('poison', client=Stage(client, facts=(Prepares(),)))


def importance(num_clients: int, expected: int, capacity: int, explore: float = 0.2) -> Layer:
  """Returns Poisson selection in proportion to the last norm seen; client state: that norm."""
  validate.integer(num_clients=num_clients)
  validate.integer(expected=expected)
  validate.integer(capacity=capacity)
  validate.probability(explore=explore)

  def draw(ctx, eligible, state):
    score = ctx.table
    share = (1 - explore) * score / score.sum() + explore / num_clients
    chance = jnp.minimum(1.0, expected * share)
    taken = jax.random.uniform(ctx.key, (num_clients,)) < chance
    ids = jnp.nonzero(taken, size=capacity, fill_value=num_clients)[0].astype(jnp.int32)
    real = ids < num_clients
    cohort = Member(ids, real, real, chance.at[ids].get(mode='fill', fill_value=1))
    return cohort, state, {}

  def client(ctx, message, score):
    seen = tree.norm(message.update)
    score = jnp.where(message.weight > 0, seen, score)
    return message._replace(weight=message.weight / ctx.client.chance), score, {}

  law = Draws('data_dependent', num_clients, expected, capacity)
  return Layer(
    'select',
    select=drawing(draw, law, "others' data"),
    client=Stage(client, lambda ctx: jnp.float32(1)),
  )


def adaptive_clip(bound: float, multiplier: float, expected: float, rate: float = 0.2) -> Layer:
  """Returns a clip at a tracked median norm, with noise (Andrew et al. 2021); aux: a bit."""
  validate.positive(bound=bound)
  validate.non_negative(multiplier=multiplier)
  validate.positive(expected=expected)
  validate.positive(rate=rate)

  def client(ctx, message, state):
    size, limit = tree.norm(message.update), ctx.server_state
    update = tree.scale(jnp.minimum(1, limit / jnp.maximum(size, 1e-12)), message.update)
    below = jnp.where(message.weight > 0, (size <= limit).astype(jnp.float32) - 0.5, 0)
    return message._replace(update=update, aux=message.aux | {'below': below}), state, {}

  def server(ctx, message, limit):
    flat, restore = ravel_pytree(message.update)
    noisy = flat + limit * multiplier * jax.random.normal(ctx.key, flat.shape)
    aux = dict(message.aux)
    below = aux.pop('below') / expected + 0.5
    new = limit * jnp.exp(-rate * (below - 0.5))
    return message._replace(update=restore(noisy), aux=aux), new, {'bound': limit}

  return Layer(
    'privacy', client=Stage(client), server=Stage(server, lambda ctx: jnp.float32(bound))
  )
