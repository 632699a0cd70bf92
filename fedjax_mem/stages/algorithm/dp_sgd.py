"""Example-level differential privacy inside the client: DP-SGD as the local training.

In each local step every example of the client is in the batch independently with probability
`rate`. Its gradient is clipped, the clipped gradients are summed, Gaussian noise is added to the
sum, and the result is divided by a fixed number.

Formal guarantee: a client's message in one participation is post-processing of `steps` Gaussian
releases of multiplier `noise_multiplier` on Poisson samples of its examples. Each example is
protected from the server, too. The guarantee needs equal weights, since the number of examples is
private; the plan checks this. A batch with more examples than rows is cut uniformly at random; the
ledger adds the cost.

The metrics are computed from the examples without noise: epsilon does not cover them. Nor does it
cover how long a step takes, which grows with the examples drawn.

References: Abadi et al. (2016), arXiv 1607.00133, Algorithm 1; McMahan et al. (2018), arXiv
1710.06963, section 2 (fixed divisor).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Accumulated,
  Bound,
  Context,
  Draws,
  Examples,
  Fact,
  Layer,
  Mean,
  Mechanism,
  Message,
  Metrics,
  Noises,
  Stage,
  Task,
  Total,
  Trains,
  Tree,
  rounding,
  tree,
  validate,
)
from fedjax_mem.core.examples import Rows
from fedjax_mem.kernels.loops import sums
from fedjax_mem.kernels.norms import outer
from fedjax_mem.kernels.norms.clip import MARGIN
from fedjax_mem.kernels.random import laws
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import _examples as examples

# Probability that a batch of the largest client overflows the rows chosen by default.
_OVERFLOW = 1e-14

# Rows at a time by default: at most so many, and so many values of the gradients that are formed
# (64 MiB).
_ROWS = 32
_VALUES = 1 << 24

# (sum of clipped gradients, sums for the metrics)
_Sums = tuple[sums.Sum, dict[str, jax.Array]]


def batch_rows(rate: float, examples: int, capacity: int | None) -> int:
  """Returns the rows of a batch: `capacity`, or the fewest that overflow once in 10^14 draws.

  Args:
    rate: probability of each example.
    examples: number of examples of the largest client.
    capacity: rows of a batch; None: chosen here.
  """
  if capacity is not None:
    return min(capacity, examples)
  return laws.binomial_capacity(examples, rate, _OVERFLOW)


def dp_sgd(
  loss: training.LossFn,
  *,
  learning_rate: training.Rate,
  batch_size: int,
  steps: int,
  rate: float,
  l2_clip_norm: float,
  noise_multiplier: float,
  capacity: int | None = None,
  microbatch: int | None = None,
  mechanism: str | type[Mechanism] = 'gaussian',
  optimizer: training.OptimizerFn = optax.sgd,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Layer:
  """Returns the layer whose clients train by DP-SGD; the server averages their updates.

  Every client runs `steps` steps, whatever its size; a step with an empty batch is pure noise. An
  example whose gradient is not finite contributes zero.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2 / 2
  >>> numbers = dict(batch_size=8, steps=10, rate=0.1, l2_clip_norm=1.0, noise_multiplier=2.0)
  >>> noise = dp_sgd(loss, learning_rate=0.1, **numbers).fact(fm.Noises)
  >>> noise.mechanism, noise.unit, noise.steps
  (Gaussian(noise_multiplier=2.0), 'example', 10)

  Args:
    loss: (params, batch, key) -> losses [B], one for each example.
    learning_rate: the clients' learning rate, a number > 0 or a schedule round -> number.
    batch_size: fixed divisor of a noised sum of gradients, public, >= 1: the expected batch size.
    steps: local steps a round, >= 1.
    rate: probability of each example in each step, in (0, 1], the same for all clients.
    l2_clip_norm: bound on the L2 norm of one example's gradient, in 1e-30 ... 1e30.
    noise_multiplier: standard deviation of the noise on the sum over the bound; 0: no noise and no
      claim of privacy.
    capacity: rows of a batch; by default, such that a batch overflows once in 10^14 draws.
    microbatch: examples at a time, >= 1, for memory; by default up to 32, see `Steps.held`.
    mechanism: noise of floats scaled to the L2 norm: 'gaussian', or 'package.module:Class'.
    optimizer: learning rate -> the clients' optax optimizer, of noised gradients.
    server_optimizer: optax optimizer of the average update; by default x <- x - update.

  Raises:
    ValueError: an argument is out of range.
  """
  loss = _whole(training.loss_of(loss))
  training.check_rate(learning_rate=learning_rate)
  validate.function(optimizer=optimizer)
  steps_of = Steps(
    loss,
    batch_size=batch_size,
    steps=steps,
    rate=rate,
    l2_clip_norm=l2_clip_norm,
    noise_multiplier=noise_multiplier,
    capacity=capacity,
    microbatch=microbatch,
    mechanism=mechanism,
  )
  server = training.server_step(training.server_optimizer_of(server_optimizer))
  return Layer('algorithm', client=_trains(steps_of, learning_rate, optimizer), server=server)


def _whole(loss: training.LossFn) -> training.LossFn:
  """Returns the loss; raises `ValueError` if its batches are taken in parts."""
  if isinstance(loss, Accumulated):
    raise ValueError(
      'accumulate must be 1 (client.accumulate) for dp_sgd, which has `microbatch`: it takes the '
      f'gradients of single examples, so many at a time, got {loss.parts!r}.'
    )
  return loss


def _trains(steps: 'Steps', rate: training.Rate, optimizer: training.OptimizerFn) -> Stage:
  """Returns the client side that runs the steps, at the round's learning rate."""

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    local = optimizer(training.rate_at(rate, ctx.round))
    params, metrics = steps.run(ctx.key, task, local)
    update = tree.sub(task.params, params)
    return Message(update, task.data.count.astype(jnp.float32), {}), state, metrics

  return Stage(client, facts=steps.facts)


@dataclasses.dataclass(frozen=True)
class Steps:
  """The local steps of DP-SGD; the attributes are the arguments of `dp_sgd`."""

  loss: training.LossFn
  _: dataclasses.KW_ONLY
  batch_size: int
  steps: int
  rate: float
  l2_clip_norm: float
  noise_multiplier: float
  capacity: int | None
  microbatch: int | None
  mechanism: str | type[Mechanism] = 'gaussian'

  def __post_init__(self) -> None:
    """Raises `ValueError` if an argument is out of range."""
    validate.integer(batch_size=self.batch_size)
    validate.integer(steps=self.steps)
    if validate.probability(rate=self.rate) < 2.0**-32:
      raise ValueError(
        f'rate must be at least 2**-32, the finest that is drawn, got {self.rate!r}.'
      )
    if not 1e-30 <= validate.positive(l2_clip_norm=self.l2_clip_norm) <= 1e30:
      raise ValueError(
        f'l2_clip_norm must be in 1e-30 ... 1e30, for which float32 has room, '
        f'got {self.l2_clip_norm!r}.'
      )
    validate.non_negative(noise_multiplier=self.noise_multiplier)
    if self.capacity is not None:
      validate.integer(capacity=self.capacity)
    if self.microbatch is not None:
      validate.integer(microbatch=self.microbatch)
    mechanisms.find(self.mechanism, 'l2', integers=False, fresh=True)

  @property
  def facts(self) -> tuple[Fact, ...]:
    """The facts of the client side that runs these steps."""
    if self.made is None:
      return (Trains(),)
    return Trains(), Noises(self.made, 'local', 'example', self.batches, self.steps)

  @functools.cached_property
  def made(self) -> Mechanism | None:
    """The noise on the sum of gradients; None if there is none."""
    return mechanisms.make(mechanisms.find(self.mechanism), self.noise_multiplier)

  def batches(self, examples: int) -> Draws:
    """Returns how the largest client, which has `examples` examples, draws a batch.

    No other client overflows its batch more often.
    """
    rows = batch_rows(self.rate, examples, self.capacity)
    return Draws('poisson', examples, self.rate * examples, rows)

  def held(self, capacity: int, rows: int, formed: int) -> int:
    """Returns the examples that are held at a time.

    Args:
      capacity: examples of the largest client.
      rows: rows of a batch.
      formed: values of an example's gradient that are formed.
    """
    if self.microbatch is not None:
      return min(self.microbatch, rows)
    most = max(1, min(_ROWS, _VALUES // max(formed, 1)))
    # Equal parts of the rows that nine batches in ten need no more than: few of them are empty.
    usual = min(rows, laws.binomial_capacity(capacity, self.rate, 0.1))
    return -(-usual // -(-usual // most))

  def run(
    self, key: jax.Array, task: Task, local: optax.GradientTransformation
  ) -> tuple[Tree, Metrics]:
    """Returns (parameters after all steps, metrics)."""
    data = task.data
    rows = batch_rows(self.rate, data.capacity, self.capacity)
    one = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], data.take(jnp.zeros(1, jnp.int32))))
    plan = examples.plan(self.loss, task.params, one, jax.eval_shape(lambda: key))
    held = self.held(data.capacity, rows, plan.formed)
    # What is rounded off the sums, and off the products of which they are sums.
    slack = rounding(rows) + outer.slack(rows, held)

    def step(number: jax.Array, carry: tuple[Tree, Tree, Metrics]) -> tuple[Tree, Tree, Metrics]:
      params, opt, metrics = carry
      draw, drop, add = jax.random.split(jax.random.fold_in(key, number), 3)
      positions, mask, cut = poisson_batch(draw, data, self.rate, rows)
      batch = positions, mask
      summed, seen = _clipped_sum(plan, params, data, batch, drop, self.l2_clip_norm, held)
      if self.made is not None:
        bound = Bound(l2=self.l2_clip_norm, linf=self.l2_clip_norm, rows=1)
        bound = bound.summed(slack)
        summed = tree.add(summed, self.made.draw(add, summed, bound, ())[0])
      grads = jax.tree.map(lambda g, p: (g / self.batch_size).astype(p.dtype), summed, params)
      updates, opt = local.update(grads, opt, params)
      seen = {**seen, 'overflow': cut}
      return optax.apply_updates(params, updates), opt, tree.add(metrics, seen)

    zero = {name: jnp.float32(0) for name in ('loss', 'clipped', 'used')}
    zero |= {'not_finite': jnp.int32(0), 'overflow': jnp.int32(0)}
    start = (task.params, local.init(task.params), zero)
    params, _, seen = jax.lax.fori_loop(0, self.steps, step, start)
    return params, _metrics(seen, self.steps)


def _metrics(seen: dict[str, jax.Array], steps: int) -> Metrics:
  return {
    'train_loss': Mean(seen['loss'], seen['used']),
    'steps': Total(jnp.int32(steps)),
    'overflow': Total(seen['overflow']),
    'clipped': Mean(seen['clipped'], seen['used']),
    'not_finite_examples': Total(seen['not_finite']),
  }


def poisson_batch(
  key: jax.Array, data: Examples, rate: float, rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (positions [rows] int32, mask [rows] bool, whether the batch was cut, int32).

  Each of the client's examples is in the batch independently with probability
  floor(rate 2^32) / 2^32. If there are more than `rows`, those with the largest of 32 random bits
  are left out: a uniform choice, up to ties.
  """
  bits = jax.random.bits(key, (data.capacity,), jnp.uint32)
  indices = jnp.arange(data.capacity, dtype=jnp.int32)
  taken = laws.chosen(bits, rate) & (indices < data.count)
  left_out = (~taken).astype(jnp.int32)
  positions = jax.lax.sort((left_out, bits, indices), num_keys=2)[2][:rows]
  count = taken.sum(dtype=jnp.int32)
  return positions, jnp.arange(rows) < count, (count > rows).astype(jnp.int32)


def _clipped_sum(
  plan: examples.Plan,
  params: Tree,
  data: Examples,
  batch: tuple[jax.Array, jax.Array],
  key: jax.Array,
  bound: float,
  held: int,
) -> tuple[Tree, dict[str, jax.Array]]:
  """Returns (sum of clipped float32 gradients, sums for the metrics) of the examples in a batch.

  Args:
    plan: how the gradients of the loss are computed.
    params: the client's parameters.
    data: the client's examples.
    batch: (positions [rows] int32, mask [rows] bool): which rows hold an example.
    key: PRNG key of the losses.
    bound: bound on the L2 norm of one gradient.
    held: rows at a time.
  """
  ball = jnp.float32(bound * (1 - MARGIN))

  def part(carry: _Sums, rows: Rows) -> _Sums:
    # By position: an example's key does not depend on the rows that are beside it.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows.positions)
    losses, grads = examples.gradients(plan, params, rows.batch, keys)
    clipped, norms, finite = outer.clip_each(grads, ball)
    ok = rows.mask & finite
    over = ok & (norms > bound)
    seen = {
      'loss': jnp.where(ok, losses, 0).sum(dtype=jnp.float32),
      'clipped': over.sum(dtype=jnp.float32),
      'used': ok.sum(dtype=jnp.float32),
      'not_finite': (rows.mask & ~ok).sum(dtype=jnp.int32),
    }
    summed, before = carry
    return outer.add(summed, outer.keep(ok, clipped)), tree.add(before, seen)

  leaves, structure = jax.tree.flatten(params)
  zeros = [jnp.zeros(p.shape, jnp.float32) for p in leaves]
  seen = {name: jnp.float32(0) for name in ('loss', 'clipped', 'used')}
  seen['not_finite'] = jnp.int32(0)
  summed, seen = data.fold(part, (sums.zeros(zeros), seen), held, batch)
  return jax.tree.unflatten(structure, summed.high), seen
