"""Plain NumPy loops, in float64, of what the layers compute; only random draws come from jax.

Parameters are one vector in the order of the tree: the biases [3], then the weights [5, 3].
"""

import jax
import jax.numpy as jnp
import numpy as np
from reference import tiny

from fedjax_mem.core import keys

START = tiny.vec(tiny.initial())
RATE = 0.5


def key(layer: str, role: str, round: int, client: int | None = None):
  """Returns the key of one role in a layer, as core/keys.py derives it."""
  base = keys.layer_key(keys.seed_key(tiny.SEED), round, layer)
  return keys.role_key(base, role, client)


def split(v):
  """Returns (biases [K], weights [D, K]) of a vector."""
  k = tiny.CLASSES
  return v[:k], v[k:].reshape(-1, k)


def losses(v, x, y) -> np.ndarray:
  """Returns the cross-entropy of each example, [B]."""
  b, w = split(v)
  z = x.astype(np.float64) @ w + b
  z = z - z.max(1, keepdims=True)
  return np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]


def gradient(v, x, y) -> np.ndarray:
  """Returns the gradient of the mean loss, a vector."""
  b, w = split(v)
  x = x.astype(np.float64)
  z = x @ w + b
  p = np.exp(z - z.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  p[np.arange(len(y)), y] -= 1
  p /= len(y)
  return np.concatenate([p.sum(0), (x.T @ p).ravel()])


def of(client: int, v, flipped: int = 0) -> np.ndarray:
  """Returns a client's mean gradient; the labels of clients below `flipped` are moved on by one."""
  d = tiny.DATA[client]
  y = (d['y'] + 1) % tiny.CLASSES if client < flipped else d['y']
  return gradient(v, d['x'], y)


def rota(round: int) -> tuple[list[int], list[int]]:
  """Returns the clients selected and those that arrive, as `tiny.rota`."""
  ids = [(round * tiny.C + i) % tiny.N for i in range(tiny.C)]
  return ids, [i for i in ids if not tiny.is_lost(i, round)]


def linear(rounds: int, combine=lambda u: np.mean(u, 0), flipped: int = 0) -> np.ndarray:
  """Returns the parameters when a rule makes one update of those that arrive."""
  v = START
  for t in range(rounds):
    v = v - RATE * combine(np.array([of(i, v, flipped) for i in rota(t)[1]]))
  return v


def krum(updates, byzantine: int) -> np.ndarray:
  """Returns the update with the least distance to its n - f - 2 neighbours."""
  n = len(updates)
  gap = ((updates[:, None] - updates[None]) ** 2).sum(-1)
  score = [np.sort(np.delete(gap[i], i))[: n - byzantine - 2].sum() for i in range(n)]
  return updates[int(np.argmin(score))]


def fixed_point(rounds: int, bits: int) -> np.ndarray:
  """Returns the parameters when updates are summed as whole multiples of 2**-bits."""
  return linear(rounds, lambda u: np.mean(np.round(u * 2.0**bits) / 2.0**bits, 0))


def scaffold(rounds: int, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (parameters, the clients' controls [N, D])."""
  v, common, own = START, np.zeros_like(START), np.zeros((tiny.N, START.size))
  for t in range(rounds):
    updates, changes = [], []
    for i in rota(t)[1]:
      w = v
      for _ in range(steps):
        w = w - rate * (of(i, w) - own[i] + common)
      new = own[i] - common + (v - w) / (steps * rate)
      updates.append(v - w)
      changes.append(new - own[i])
      own[i] = new
    v = v - np.mean(updates, 0)
    common = common + np.sum(changes, 0) / tiny.N
  return v, own


def top_k(rounds: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns (parameters, the clients' errors [N, D])."""
  v, error = START, np.zeros((tiny.N, START.size))
  k = max(1, int(fraction * START.size))
  for t in range(rounds):
    sent = []
    for i in rota(t)[1]:
      u = of(i, v) + error[i]
      s = np.where(np.abs(u) >= np.sort(np.abs(u))[-k], u, 0)
      error[i] = u - s
      sent.append(s)
    v = v - RATE * np.mean(sent, 0)
  return v, error


def importance(rounds: int, expected: int, capacity: int, explore: float = 0.2):
  """Returns (parameters, the clients' scores [N]); examples weigh by 1 / chance."""
  v, score = START, np.ones(tiny.N)
  for t in range(rounds):
    chance = np.minimum(1, expected * ((1 - explore) * score / score.sum() + explore / tiny.N))
    drawn = np.asarray(jax.random.uniform(key('select', 'select', t), (tiny.N,)))
    ids = np.flatnonzero(drawn < chance)[:capacity]
    updates = np.array([of(i, v) for i in ids])
    v = v - RATE * np.average(updates, 0, [tiny.COUNTS[i] / chance[i] for i in ids])
    score[ids] = np.linalg.norm(updates, axis=1)
  return v, score


def adaptive_clip(rounds: int, bound: float, multiplier: float, expected: float, rate=0.2):
  """Returns (parameters, the bound)."""
  v = START
  for t in range(rounds):
    arrived = rota(t)[1]
    updates = [of(i, v) for i in arrived]
    sizes = [np.linalg.norm(u) for u in updates]
    total = sum(u * min(1, bound / s) for u, s in zip(updates, sizes, strict=True))
    noise = np.asarray(jax.random.normal(key('privacy', 'server', t), v.shape), np.float64)
    v = v - RATE * (total + bound * multiplier * noise) / len(arrived)
    below = sum(float(s <= bound) - 0.5 for s in sizes) / expected + 0.5
    bound = bound * np.exp(-rate * (below - 0.5))
  return v, bound


def shuffle(key, count: int, padded: int) -> np.ndarray:
  """Returns the order of a client's examples in an epoch: a sort of 31 random bits, [count]."""
  bits = np.asarray(jax.random.bits(key, (padded,), jnp.uint32))[:count] >> 1
  return np.argsort(bits, kind='stable')


def local_sgd(v, client: int, round: int, *, rate, batch, epochs, momentum=0.0, data=None):
  """Returns (parameters, [losses before each step, by example]) of a client's local training."""
  d = (tiny.DATA if data is None else data)[client]
  longest = max(len(x['y']) for x in (tiny.DATA if data is None else data))
  size = min(batch, longest)
  padded = size * -(-longest // size)
  seen, velocity = [], np.zeros_like(v)
  own = key('algorithm', 'client', round, client)
  for epoch in range(epochs):
    shuffle_key = jax.random.split(jax.random.fold_in(own, epoch))[0]
    n = len(d['y'])
    order = np.arange(n) if padded == size else shuffle(shuffle_key, n, padded)
    for first in range(0, n, size):
      rows = order[first : first + size]
      seen.append(losses(v, d['x'][rows], d['y'][rows]))
      velocity = momentum * velocity + gradient(v, d['x'][rows], d['y'][rows])
      v = v - rate * velocity
  return v, np.concatenate(seen)


def server_optimizer(name: str, lr: float, b1=0.9, b2=0.99, tau=1e-3):
  """Returns x, d, state -> (x, state): Reddi et al. (2021), Algorithm 2, as it is printed.

  Their Delta is client - server, so it is -d.
  """

  def step(x, d, state=None):
    delta = -d
    m, v = (np.zeros_like(x), np.full_like(x, tau**2)) if state is None else state
    beta = 0.0 if name == 'fedadagrad' else b1
    m = beta * m + (1 - beta) * delta
    if name == 'fedadagrad':
      v = v + delta**2
    elif name == 'fedyogi':
      v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)
    else:
      v = b2 * v + (1 - b2) * delta**2
    return x + lr * m / (np.sqrt(v) + tau), (m, v)

  return step
