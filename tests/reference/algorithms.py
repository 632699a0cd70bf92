"""Algorithms as plain NumPy loops, in float64, over the tiny problem; only random draws are jax's.

Each is a function rounds -> (parameters, what the clients keep [N, D] or None, server states). All
clients take part as `twins.rota` says, with local SGD of `HOW`.
"""

import jax
import numpy as np
from reference import tiny, twins

HOW = {'rate': 0.1, 'batch': 4, 'epochs': 2, 'momentum': 0.9, 'decay': 0.01}
LONGEST = max(tiny.COUNTS)


def everyone(round):
  """Returns all clients, as a cohort in which everybody arrives."""
  return list(range(tiny.N))


def arrive(round):
  """Returns the clients of a round of the rota that arrive."""
  return twins.rota(round)[1]


def local(v, client, round, *, epochs=None, correct=None, drift=0.0, **how):
  """Returns (parameters, steps) after local SGD.

  `correct` is (parameters, gradient there, parameters -> gradient of the same batch) -> gradient,
  and `drift` is added to each step outside of the momentum.
  """
  how = HOW | how
  d, n = tiny.DATA[client], tiny.COUNTS[client]
  size = min(how['batch'], LONGEST)
  padded = size * -(-LONGEST // size)
  own, velocity, steps = twins.key('algorithm', 'client', round, client), np.zeros_like(v), 0
  for epoch in range(how['epochs'] if epochs is None else epochs):
    shuffled = jax.random.split(jax.random.fold_in(own, epoch))[0]
    order = np.arange(n) if padded == size else twins.shuffle(shuffled, n, padded)
    for first in range(0, n, size):
      rows = order[first : first + size]
      of = lambda p, rows=rows: twins.gradient(p, d['x'][rows], d['y'][rows])
      g = of(v)
      g = (g if correct is None else correct(v, g, of)) + how['decay'] * v
      velocity = how['momentum'] * velocity + g
      v = v - how['rate'] * velocity + drift
      steps += 1
  return v, steps


def weights(ids, by='examples'):
  """Returns the weights of some clients."""
  return np.array([tiny.COUNTS[i] if by == 'examples' else 1.0 for i in ids], np.float64)


def average(values, ids, by='examples'):
  """Returns the weighted mean of the values of some clients."""
  return np.average(values, 0, weights(ids, by))


def fedavg(rounds, cohort=arrive, by='examples', **how):
  v = twins.START
  for t in range(rounds):
    v = average([local(v, i, t, **how)[0] for i in cohort(t)], cohort(t), by)
  return v, None, {}


def passes(client, round, share):
  """Returns the epochs of a client in a round of FedProx with partial work."""
  own = jax.random.fold_in(twins.key('algorithm', 'client', round, client), HOW['epochs'])
  late, number = jax.random.split(own)
  fewer = int(jax.random.randint(number, (), 1, HOW['epochs'] + 1, np.int32))
  return fewer if bool(jax.random.bernoulli(late, share)) else HOW['epochs']


def fedprox(rounds, cohort=arrive, mu=0.5, partial_work=0.0, by='examples', **how):
  v = twins.START
  for t in range(rounds):
    near = lambda p, g, of, x=v: g + mu * (p - x)
    more = lambda i, t=t: {'epochs': passes(i, t, partial_work)} if partial_work else {}
    made = [local(v, i, t, correct=near, **more(i), **how)[0] for i in cohort(t)]
    v = average(made, cohort(t), by)
  return v, None, {}


def scaffold(rounds, cohort=arrive, option=2, by='examples', **how):
  v, own = twins.START, np.zeros((tiny.N, twins.START.size))
  p = weights(range(tiny.N), by) / weights(range(tiny.N), by).sum()
  rate = (HOW | how)['rate']
  for t in range(rounds):
    c, new, made = p @ own, own.copy(), []  # c is the weighted mean of the controls, by definition
    for i in cohort(t):
      y, steps = local(v, i, t, drift=-rate * (c - own[i]), **how)
      new[i] = twins.of(i, v) if option == 1 else own[i] - c + (v - y) / (steps * rate)
      made.append(y)
    v, own = average(made, cohort(t), by), new
  return v, own, {'control': p @ own}


def lengths(steps, rho, pull):
  """Returns |a_i|_1 from a_i itself: how often each of the gradients counts in x - y."""
  way, speed = np.zeros(steps), np.zeros(steps)
  for k in range(steps):
    speed = rho * speed + np.eye(steps)[k] - pull * way
    way = way + speed
  return np.abs(way).sum()


def fednova(rounds, cohort=arrive, mu=0.0, by='examples', **how):
  v, used = twins.START, HOW | how
  for t in range(rounds):
    near = lambda p, g, of, x=v: g + mu * (p - x)
    made = [local(v, i, t, correct=near, **how) for i in cohort(t)]
    a = [lengths(steps, used['momentum'], used['rate'] * mu) for _, steps in made]
    d = [(v - y) / n for (y, _), n in zip(made, a, strict=True)]
    v = v - average(a, cohort(t), by) * average(d, cohort(t), by)
  return v, None, {}


def feddyn(rounds, cohort=arrive, alpha=0.5, by='examples', **how):
  v, own, h = twins.START, np.zeros((tiny.N, twins.START.size)), 0.0
  p = weights(range(tiny.N), by) / weights(range(tiny.N), by).sum()
  for t in range(rounds):
    new, made = own.copy(), []
    for i in cohort(t):
      dynamic = lambda q, g, of, x=v, mine=own[i]: g - mine + alpha * (q - x)
      made.append(local(v, i, t, correct=dynamic, **how)[0])
      new[i] = own[i] - alpha * (made[-1] - v)
      h = h - alpha * p[i] * (made[-1] - v)
    v, own = average(made, cohort(t), by) - h / alpha, new
  return v, own, {'drift': h / alpha}


def mime(rounds, cohort=arrive, beta=0.9, reduced=True, by='examples', **how):
  v, m, c = twins.START, np.zeros_like(twins.START), np.zeros_like(twins.START)
  for t in range(rounds):

    def correct(p, g, of, x=v, m=m, c=c):
      return (1 - beta) * (g - of(x) + c if reduced else g) + beta * m

    made = [local(v, i, t, correct=correct, **how)[0] for i in cohort(t)]
    c = average([twins.of(i, v) for i in cohort(t)], cohort(t), by)
    v, m = average(made, cohort(t), by), (1 - beta) * c + beta * m
  return v, None, {'momentum': m} | ({'gradient': c} if reduced else {})


def mime_lite(rounds, cohort=arrive, beta=0.9, by='examples', **how):
  return mime(rounds, cohort, beta, reduced=False, by=by, **how)
