"""The recurrence of an LSTM, with a backward pass of its own.

Autodiff of a scan adds up the gradient of the recurrent weights step by step: T products of a few
rows each, and T sums over all weights. Here the backward scan finds only the gradients d_z of the
pre-activations, by one product a step, d_z @ recurrent^T. The gradient of the recurrent weights is
then one product over all time steps. d_z is also the gradient of `drive`, so that what made the
drive (a kernel, a bias) gets its gradient over all time steps at once, too.

The cell is that of Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000):

    z_t = drive_t + hidden_{t-1} @ recurrent, in four parts: i, f, g, o
    cell_t = sigmoid(f) * cell_{t-1} + sigmoid(i) * tanh(g)
    hidden_t = sigmoid(o) * tanh(cell_t)

Worked example: one unit and one step. The gates i and o of drive 0 are 1/2, so that the cell is
tanh(1) / 2 and the output half of its tanh. The start has no cell to forget: f has no gradient.

>>> drive = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 1, 4)
>>> step = lambda drive: lstm(drive, jnp.zeros((1, 4)))
>>> round(step(drive).item(), 4), round(float(np.tanh(np.tanh(1) / 2) / 2), 4)
(0.1817, 0.1817)
>>> [round(x, 3) for x in jax.grad(lambda d: step(d).sum())(drive).ravel().tolist()]
[0.083, 0.0, 0.091, 0.091]

Letters in shapes: T time steps, B batch, H units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.kernels.nn import product, wide

_State = tuple[jax.Array, jax.Array]


class _Slopes(NamedTuple):
  """Derivatives that the forward scan keeps, [T, B, H] each ([B, H] within a step).

  Attributes:
    forget: of the cell, by the cell before.
    hidden: of the cell's output, by the cell.
    i: of the cell, by the pre-activation of the input gate.
    f: of the cell, by that of the forget gate.
    g: of the cell, by that of the candidate.
    o: of the output, by that of the output gate.
  """

  forget: jax.Array
  hidden: jax.Array
  i: jax.Array
  f: jax.Array
  g: jax.Array
  o: jax.Array


def _run(drive: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, _Slopes]:
  """Returns (hidden [T, B, H], the derivatives of each step)."""
  cells = wide.dtype_of(drive)  # they sum over time

  def step(state: _State, drive: jax.Array) -> tuple[_State, tuple[jax.Array, _Slopes]]:
    hidden, before = state
    i, f, g, o = jnp.split((drive + hidden @ recurrent).astype(cells), 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell = f * before + i * g
    out = jnp.tanh(cell)
    # sigmoid' = s (1 - s) and tanh' = 1 - t^2. Kept here, where all of it is at hand, they leave
    # the backward scan four products of vectors.
    slopes = _Slopes(
      forget=f,
      hidden=o * (1 - out * out),
      i=g * i * (1 - i),
      f=before * f * (1 - f),
      g=i * (1 - g * g),
      o=out * o * (1 - o),
    )
    slopes = _Slopes(*(x.astype(drive.dtype) for x in slopes))
    hidden = (o * out).astype(drive.dtype)
    return (hidden, cell), (hidden, slopes)

  start = jnp.zeros((drive.shape[1], recurrent.shape[0]), drive.dtype)
  kept: tuple[jax.Array, _Slopes] = lax.scan(step, (start, start.astype(cells)), drive)[1]
  return kept


@jax.custom_vjp
def _lstm(drive: jax.Array, recurrent: jax.Array) -> jax.Array:
  """Returns hidden [T, B, H]; the derivatives are dead code here, which XLA removes."""
  return _run(drive, recurrent)[0]


# A derivative of its own: see the module's docstring.
def _forward(
  drive: jax.Array, recurrent: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, _Slopes]]:
  """Returns (hidden, (recurrent, hidden, derivatives) for `_backward`)."""
  hidden, slopes = _run(drive, recurrent)
  return hidden, (recurrent, hidden, slopes)


def _backward(
  kept: tuple[jax.Array, jax.Array, _Slopes], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of (drive, recurrent).

  Args:
    kept: from `_forward`.
    cotangent: of hidden, [T, B, H].
  """
  recurrent, hidden, slopes = kept
  # Transposed once: XLA would take the transposition into each step's product, at twice its time.
  back, cells = lax.optimization_barrier(recurrent.T), wide.dtype_of(hidden)

  def step(state: _State, at: tuple[jax.Array, _Slopes]) -> tuple[_State, jax.Array]:
    d_hidden, d_cell = state  # as far as it comes from the next time step
    given, slope = jax.tree.map(lambda x: x.astype(cells), at)
    d_hidden = d_hidden + given
    d_cell = d_cell + d_hidden * slope.hidden
    parts = d_cell * slope.i, d_cell * slope.f, d_cell * slope.g, d_hidden * slope.o
    d_z = jnp.concatenate(parts, axis=-1).astype(hidden.dtype)
    return ((d_z @ back).astype(cells), d_cell * slope.forget), d_z

  end = jnp.zeros(hidden.shape[1:], cells)
  d_z = lax.scan(step, (end, end), (cotangent, slopes), reverse=True)[1]
  # One time step later: zeros, hidden_0, …, hidden_{T-2}, which met z_t.
  before = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
  return d_z, product.kernel_gradient(before, d_z)


_lstm.defvjp(_forward, _backward)


def lstm(drive: jax.Array, recurrent: jax.Array) -> jax.Array:
  """Returns the outputs hidden [T, B, H] of an LSTM that starts from zeros.

  The gradient of `drive` is that of the pre-activations. Reverse mode only: `jax.jvp` and second
  derivatives are refused by jax. Of floats of 16 bits, gates and cells are computed in float32.

  Args:
    drive: [T, B, 4H], what the gates get besides the recurrent product: x @ kernel + bias; the
      parts of the last axis are the input gate, forget gate, candidate and output gate.
    recurrent: weights [H, 4H] in the same order.

  Raises:
    ValueError: the shapes do not fit.
  """
  if recurrent.ndim != 2 or recurrent.shape[1] != 4 * recurrent.shape[0]:
    raise ValueError(f'recurrent must be of shape [H, 4H], got {recurrent.shape!r}.')
  if drive.ndim != 3 or drive.shape[2] != recurrent.shape[1]:
    raise ValueError(f'drive must be of shape [T, B, {recurrent.shape[1]}], got {drive.shape!r}.')
  return _lstm(drive, recurrent)
