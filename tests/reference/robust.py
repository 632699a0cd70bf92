"""Plain NumPy twins of the robust rules, in float64; and a stack to try them on."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Member, Message


def distances(x):
  """Returns squared distances [n, n], pair by pair."""
  return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def scores(x, f):
  """Returns Krum's score of every row: of at least one neighbour."""
  d, n = distances(x), len(x)
  return np.array([np.sort(np.delete(d[i], i))[: max(n - f - 2, 1)].sum() for i in range(n)])


def shares(values, count, room=1e-9):
  """Returns 1 for the `count` smallest values, 0 for the others; those tied for the last share."""
  last = np.sort(values)[count - 1]
  inside = values < last - room * abs(last)
  tied = (values <= last + room * abs(last)) & ~inside
  return inside + tied * (count - inside.sum()) / tied.sum()


def median(x, w):
  """Returns the median of every coordinate."""
  return np.median(x, 0)


def trimmed_mean(f):
  """Returns the twin of `trimmed_mean`."""
  return lambda x, w: np.sort(x, 0)[f : len(x) - f].mean(0)


def krum(f):
  """Returns the twin of `krum`: the mean of all that have the lowest score."""
  return lambda x, w: x[shares(scores(x, f), 1) > 0].mean(0)


def multi_krum(f):
  """Returns the twin of `multi_krum`."""

  def rule(x, w):
    m = len(x) - f
    return shares(scores(x, f), m) @ x / m

  return rule


def bulyan(f):
  """Returns the twin of `bulyan`."""

  def rule(x, w):
    left, taken, n = np.arange(len(x)), [], len(x)
    while len(taken) < n - 2 * f:
      best = shares(scores(x[left], f), 1) > 0
      room = n - 2 * f - len(taken)
      tied = x[left[best]]
      taken.extend(tied if len(tied) <= room else [tied.mean(0)] * room)
      left = left[~best]
    x = np.array(taken)
    out = []
    for column in x.T:
      near = np.abs(column - np.median(column))
      count = n - 4 * f
      last, room = np.sort(near)[count - 1], 2.0**-21 * np.abs(column).max()
      inside = near < last - room
      tied = (near <= last + room) & ~inside
      total = column[inside].sum() + (count - inside.sum()) * column[tied].mean()
      out.append(total / count)
    return np.array(out)

  return rule


def geometric_median(iterations, smoothing):
  """Returns the twin of `geometric_median`."""

  def rule(x, w):
    z = np.zeros(x.shape[1])
    for _ in range(iterations):
      b = w / np.maximum(np.linalg.norm(x - z, axis=1), smoothing)
      z = (b[:, None] * x).sum(0) / b.sum()
    return z

  return rule


def centered_clipping(radius, iterations, center):
  """Returns the twin of `centered_clipping` from a center."""

  def rule(x, w):
    v = center.astype(np.float64)
    for _ in range(iterations):
      far = np.linalg.norm(x - v, axis=1)
      v = v + ((x - v) * np.minimum(1, radius / np.maximum(far, 1e-30))[:, None]).mean(0)
    return v

  return rule


def norm_bounding(bound):
  """Returns the twin of `norm_bounding`: a weighted mean."""

  def rule(x, w):
    factor = np.minimum(1, bound / np.maximum(np.linalg.norm(x, axis=1), 1e-30))
    return (w[:, None] * factor[:, None] * x).sum(0) / w.sum()

  return rule


def dnc(f):
  """Returns the twin of `dnc` on all coordinates, by a singular value decomposition."""

  def rule(x, w):
    v = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]
    far = ((x - x.mean(0)) @ v) ** 2
    kept = 1 - shares(-far, f, 4e-3)
    return kept @ x / kept.sum()

  return rule


def signguard(lower, upper):
  """Returns the twin of `signguard` on all coordinates."""

  def rule(x, w):
    norms = np.linalg.norm(x, axis=1)
    middle = np.median(norms)
    usual = (norms >= lower * middle) & (norms <= upper * middle)
    signs = np.stack([(x > 0).mean(1), (x == 0).mean(1), (x < 0).mean(1)], 1)
    apart = np.sqrt(distances(signs))
    bandwidth = max(np.median(apart, 0).mean(), 1e-6) * (1 + 1e-5)
    points = signs.copy()
    for _ in range(30):
      near = [np.linalg.norm(signs - p, axis=1) <= bandwidth for p in points]
      points = np.array([signs[k].mean(0) for k in near])
    sizes = (np.sqrt(distances(points)) <= bandwidth / 2).sum(1)
    good = usual & (sizes == sizes.max())
    good = good if good.any() else usual
    factor = np.minimum(1, middle / np.maximum(norms, 1e-300))
    return (x * factor[:, None])[good].mean(0)

  return rule


def nnm(f):
  """Returns the twin of `nnm`, rows mixed, then the weighted mean that follows."""

  def rule(x, w):
    near = len(x) - f
    mixed = [shares(row, near) @ x / near for row in distances(x)]
    return (w[:, None] * np.array(mixed)).sum(0) / w.sum()

  return rule


def context(ids, arrived, server_state=(), key=0) -> Context:
  """Returns the context of a stacked half for a cohort of the given ids [C]."""
  arrived = jnp.asarray(arrived)
  cohort = Member(jnp.asarray(ids, jnp.int32), arrived, arrived, jnp.ones(len(arrived)))
  key = jax.random.key(key)
  return Context(key, key, jnp.int32(0), cohort, cohort, None, server_state, None)


def stack(x, weights) -> Message:
  """Returns the messages of updates x [C, D], weighted, their update cut into two arrays."""
  x, w = jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32)
  x = x * w[:, None]
  update = {'a': x[:, :4].reshape(-1, 2, 2), 'b': x[:, 4:]}
  return Message(update, w, {})


def given(layer, x, center=None):
  """Returns what a rule makes of the updates x [C, D], of weight 1 each, as one array."""
  x = jnp.asarray(x, jnp.float32)
  c = len(x)
  sent = Message([x], jnp.ones(c), {})
  ctx = context(
    np.arange(c), np.ones(c, bool), [jnp.zeros(x.shape[1]) if center is None else center]
  )
  message = layer.cohort.apply(ctx, sent, ())[0]
  # A mean of rows, rather than their sum, which may be beyond float32.
  shares = message.weight / message.weight.sum()
  by = jnp.where(message.weight > 0, message.weight, 1)
  return shares @ (message.update[0] / by[:, None])


def unstack(message: Message):
  """Returns rows [C, D] of the updates."""
  a, b = message.update['a'], message.update['b']
  return np.concatenate([np.asarray(a).reshape(len(a), -1), np.asarray(b)], axis=1)
