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

import jax
import jax.numpy as jnp
from jax import lax

# What the backward pass needs: recurrent [H, 4H], hidden [T, B, H], the gates after their
# activation [T, B, 4H], the cell [T, B, H] and its tanh [T, B, H].
_Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
_State = tuple[jax.Array, jax.Array]


def _before(x: jax.Array) -> jax.Array:
  """Returns x [T, ...] one step later: zeros, x_0, …, x_{T-2}."""
  return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def _run(drive: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, ...]:
  """Returns what is kept, without `recurrent`: (hidden, gates, cell, tanh of the cell)."""

  def step(state: _State, drive: jax.Array) -> tuple[_State, tuple[jax.Array, ...]]:
    hidden, cell = state
    i, f, g, o = jnp.split(drive + hidden @ recurrent, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell = f * cell + i * g
    squashed = jnp.tanh(cell)
    hidden = o * squashed
    return (hidden, cell), (hidden, jnp.concatenate([i, f, g, o], -1), cell, squashed)

  start = jnp.zeros((drive.shape[1], recurrent.shape[0]), drive.dtype)
  kept: tuple[jax.Array, ...] = lax.scan(step, (start, start), drive)[1]
  return kept


# A derivative of its own: see the module's docstring.
@jax.custom_vjp
def _lstm(drive: jax.Array, recurrent: jax.Array) -> jax.Array:
  """Returns hidden [T, B, H]; what else `_run` keeps is dead code here, which XLA removes."""
  return _run(drive, recurrent)[0]


def _forward(drive: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, _Kept]:
  """Returns (hidden, what `_backward` needs)."""
  hidden, gates, cell, squashed = _run(drive, recurrent)
  return hidden, (recurrent, hidden, gates, cell, squashed)


def _backward(kept: _Kept, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of (drive, recurrent).

  Args:
    kept: from `_forward`.
    cotangent: of hidden, [T, B, H].
  """
  recurrent, hidden, gates, cell, squashed = kept
  back = recurrent.T  # transposed once, and not in every step

  def step(state: _State, at: tuple[jax.Array, ...]) -> tuple[_State, jax.Array]:
    d_hidden, d_cell = state  # from the next time step
    cotangent, gates, before, squashed = at
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    d_hidden = cotangent + d_hidden
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    # sigmoid' = s (1 - s) and tanh' = 1 - t^2, in terms of the gates that were kept.
    d_z = jnp.concatenate(
      [
        d_cell * (g * i * (1 - i)),
        d_cell * (before * f * (1 - f)),
        d_cell * (i * (1 - g * g)),
        d_hidden * (squashed * o * (1 - o)),
      ],
      axis=-1,
    )
    return (d_z @ back, d_cell * f), d_z

  start = jnp.zeros(hidden.shape[1:], hidden.dtype)
  steps = (cotangent, gates, _before(cell), squashed)
  d_z = lax.scan(step, (start, start), steps, reverse=True)[1]
  return d_z, jnp.einsum('tbh,tbg->hg', _before(hidden), d_z)


_lstm.defvjp(_forward, _backward)


def lstm(drive: jax.Array, recurrent: jax.Array) -> jax.Array:
  """Returns the outputs hidden [T, B, H] of an LSTM that starts from zeros.

  The gradient of `drive` is that of the pre-activations. Reverse mode only: `jax.jvp` and second
  derivatives are refused by jax.

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
