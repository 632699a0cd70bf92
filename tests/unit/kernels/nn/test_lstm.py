"""The LSTM's recurrence against NumPy in float64 and autodiff of a plain scan, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.kernels.nn import lstm

T, B, H = 7, 3, 5


def _plain(drive, recurrent):
  """The same by a scan that jax differentiates."""

  def step(state, drive):
    hidden, cell = state
    i, f, g, o = jnp.split(drive + hidden @ recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (hidden, cell), hidden

  start = jnp.zeros((drive.shape[1], recurrent.shape[0]), drive.dtype)
  return jax.lax.scan(step, (start, start), drive)[1]


def _twin(drive, recurrent, cotangent):
  """Returns (hidden, d_drive, d_recurrent) in NumPy float64: textbook, one time step at a time."""
  sigmoid = lambda z: 1 / (1 + np.exp(-z))
  drive, recurrent, cotangent = (np.asarray(x, np.float64) for x in (drive, recurrent, cotangent))
  hiddens, cells, gates = [np.zeros(cotangent.shape[1:])], [np.zeros(cotangent.shape[1:])], []
  for z in drive:
    i, f, g, o = np.split(z + hiddens[-1] @ recurrent, 4, axis=1)
    gates.append((sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)))
    i, f, g, o = gates[-1]
    cells.append(f * cells[-1] + i * g)
    hiddens.append(o * np.tanh(cells[-1]))
  d_hidden, d_cell = np.zeros_like(cells[0]), np.zeros_like(cells[0])
  d_drive, d_recurrent = np.zeros_like(drive), np.zeros_like(recurrent)
  for t in reversed(range(len(drive))):
    i, f, g, o = gates[t]
    d_hidden = d_hidden + cotangent[t]
    d_cell = d_cell + d_hidden * o / np.cosh(cells[t + 1]) ** 2
    parts = [d_cell * g, d_cell * cells[t], d_cell * i, d_hidden * np.tanh(cells[t + 1])]
    slopes = [i - i * i, f - f * f, 1 - g * g, o - o * o]
    d_drive[t] = np.concatenate([p * s for p, s in zip(parts, slopes, strict=True)], 1)
    d_recurrent += hiddens[t].T @ d_drive[t]
    d_hidden, d_cell = d_drive[t] @ recurrent.T, d_cell * f
  return np.stack(hiddens[1:]), d_drive, d_recurrent


def _inputs(*clients, dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  shapes = (T, B, 4 * H), (H, 4 * H), (T, B, H)
  return [jnp.asarray(rng.normal(size=(*clients, *shape)), dtype) for shape in shapes]


def _all(layer):
  """Returns (drive, recurrent, cotangent) -> (hidden, d_drive, d_recurrent)."""

  def run(drive, recurrent, cotangent):
    hidden, pull = jax.vjp(layer, drive, recurrent)
    return hidden, *pull(cotangent)

  return run


def _close(actual, expected, bound):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    assert a.shape == e.shape
    assert np.linalg.norm(a - e) <= bound * np.linalg.norm(e)


def test_equals_numpy_and_autodiff():
  inputs = _inputs()
  actual = jax.jit(_all(lstm.lstm))(*inputs)
  _close(actual, _twin(*inputs), 1e-6)
  _close(actual, jax.jit(_all(_plain))(*inputs), 1e-6)
  assert all(x.dtype == jnp.float32 for x in actual)


@pytest.mark.slow
def test_equals_both_in_float64():
  with jax.enable_x64():
    inputs = _inputs(dtype=np.float64)
    actual = jax.jit(_all(lstm.lstm))(*inputs)
    assert all(x.dtype == jnp.float64 for x in actual)
    _close(actual, _twin(*inputs), 1e-12)
    _close(actual, jax.jit(_all(_plain))(*inputs), 1e-12)


def _scanned(run):
  return lambda *inputs: jax.lax.scan(lambda _, one: ((), run(*one)), (), inputs)[1]


def _sharded(run):
  mesh = Mesh(np.array(jax.devices()[:2]), ('clients',))
  split = PartitionSpec('clients')
  return jax.shard_map(_scanned(run), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)


@pytest.mark.slow
@pytest.mark.parametrize(
  'mode',
  [
    jax.vmap,
    _scanned,
    lambda run: _scanned(jax.jit(run)),
    pytest.param(_sharded, marks=pytest.mark.devices(2)),
  ],
  ids=['vmap', 'scan', 'scan of jit', 'shard_map'],
)
def test_clients_with_weights_of_their_own_in_every_mode(mode):
  inputs = _inputs(4, seed=1)
  expected = [_twin(*[x[k] for x in inputs]) for k in range(4)]
  actual = jax.jit(mode(_all(lstm.lstm)))(*inputs)
  _close(actual, [np.stack(x) for x in zip(*expected, strict=True)], 1e-6)


@pytest.mark.slow
def test_eager_equals_jit():
  inputs = _inputs(seed=2)
  _close(_all(lstm.lstm)(*inputs), jax.jit(_all(lstm.lstm))(*inputs), 1e-6)


@pytest.mark.slow
def test_gradients_of_single_examples():
  drive, recurrent, cotangent = _inputs(seed=3)
  one = lambda drive, cotangent: _all(lstm.lstm)(drive[:, None], recurrent, cotangent[:, None])[1:]
  actual = jax.jit(jax.vmap(one, in_axes=1))(drive, cotangent)
  expected = [_twin(drive[:, [b]], recurrent, cotangent[:, [b]])[1:] for b in range(B)]
  _close(actual, [np.stack(x) for x in zip(*expected, strict=True)], 1e-6)
  # They add up to the gradient of the batch, and the drive's is that of the pre-activations.
  whole = _twin(drive, recurrent, cotangent)
  _close(actual[1].sum(0), whole[2], 1e-6)


@pytest.mark.slow
def test_gates_at_their_limits():
  # Pre-activations so large that gates are exactly 0 or 1: no NaN, and no gradient through them.
  drive = jnp.asarray(np.full((T, B, 4 * H), 200.0) * (-1.0) ** np.arange(4 * H), jnp.float32)
  _, recurrent, cotangent = _inputs(seed=4)
  hidden, d_drive, d_recurrent = jax.jit(_all(lstm.lstm))(drive, recurrent, cotangent)
  assert np.isfinite(hidden).all() and not d_drive.any() and not d_recurrent.any()


def test_forward_mode_is_refused():
  drive, recurrent, _ = _inputs()
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(lambda d: lstm.lstm(d, recurrent), (drive,), (drive,))


@pytest.mark.parametrize('shape', [(5, 19), (20, 5), (20,)])
def test_bad_recurrent(shape):
  with pytest.raises(ValueError, match=r'recurrent must be of shape \[H, 4H\]'):
    lstm.lstm(jnp.zeros((T, B, 20)), jnp.zeros(shape))


@pytest.mark.parametrize('shape', [(T, B, 19), (B, 20)])
def test_bad_drive(shape):
  with pytest.raises(ValueError, match=r'drive must be of shape \[T, B, 20\]'):
    lstm.lstm(jnp.zeros(shape), jnp.zeros((5, 20)))
