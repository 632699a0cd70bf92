"""Membership games on many releases of a noised sum, and what a number of trials can prove.

A game makes one release after another, half of them with the canary client, and scores each. From
the scores follows a lower bound on epsilon (Nasr et al. 2021, arXiv 2101.04535, with
Clopper-Pearson intervals). The threshold on the scores is chosen on a fifth of the trials, the
bound computed on the others, so that it holds at the stated confidence.

With n trials a lower bound is at most about log(n), however good the attack is. `Finding.best` is
that of a perfect attack, so that a verdict says whether the claim could have been refuted at all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem import account
from fedjax_mem.core import (
  IN_ROUND,
  Bound,
  Context,
  Draws,
  IncompatibleStages,
  Layer,
  Mechanism,
  Message,
  Metrics,
  Noises,
  Round,
  Stage,
  Task,
  Trains,
  Tree,
  compose,
  stack_clients,
  tree,
  validate,
)
from fedjax_mem.engine import Execution, simulate
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

SIGNIFICANCE = 0.05
HUGE = 1e6  # canary's coordinate before the clip: clipped, its norm is exactly the bound
LEAST = 20  # trials or canaries, of which a fifth chooses the threshold
CLIENTS = 8  # clients of the population that cohorts are drawn from
_FEW = 4  # clients in the game on one release: the canary, and others that send zeros


class Finding(NamedTuple):
  """The result of an attack.

  >>> Finding('release', claimed=9.0, found=4.0, best=7.5, delta=1e-5, trials=9000).verdict
  'void'

  Attributes:
    attack: 'release', 'draw' or 'one_run'.
    claimed: the accountant's upper bound on epsilon.
    found: the lower bound on epsilon, at confidence 1 - `significance`.
    best: the lower bound that a perfect attack would give with as many trials.
    delta: delta of all bounds.
    trials: number of releases, or of canaries.
    significance: largest probability of a lower bound above the true epsilon.
  """

  attack: str
  claimed: float
  found: float
  best: float
  delta: float
  trials: int
  significance: float = SIGNIFICANCE

  @property
  def verdict(self) -> str:
    """'refuted', 'not refuted', or 'void' where no attack could have refuted the claim."""
    if self.found > self.claimed:
      return 'refuted'
    return 'not refuted' if self.best > self.claimed else 'void'


def bounds(kind: str, inside: np.ndarray, outside: np.ndarray, delta: float) -> tuple[float, float]:
  """Returns (lower bound on epsilon, the one of a perfect attack with as many scores).

  Args:
    kind: the estimator, 'epsilon_clopper_pearson' or 'epsilon_one_run'.
    inside: [n] scores with the canary.
    outside: [m] scores without it.
    delta: delta of the bounds, in (0, 1).

  Raises:
    ValueError: jax-privacy is not installed.
  """
  try:
    from jax_privacy import auditing  # imported where it is used: it takes seconds
  except ImportError as error:
    raise ValueError("the audit needs jax-privacy: pip install 'fedjax_mem[privacy]'.") from error
  split = auditing.Split(0.2, seed=0)

  def one(a: np.ndarray, b: np.ndarray) -> float:
    estimator = getattr(auditing.CanaryScoreAuditor(a, b), kind)
    return float(estimator(SIGNIFICANCE, delta, threshold_strategy=split))

  return one(inside, outside), one(np.ones(len(inside)), np.zeros(len(outside)))


def release(
  layers: tuple[Layer, ...],
  claimed: Mechanism,
  params: Any,
  *,
  delta: float,
  trials: int = 100_000,
  seed: int = 0,
) -> Finding:
  """Returns the finding of the membership game on one release of the sum.

  Args:
    layers: the layers from the clip to the noise, in client order.
    claimed: the noise that they claim to add.
    params: the model's parameters; the game is played on arrays of at most eight values each, since
      the noise of different coordinates is independent.
    delta: delta of the claim.
    trials: number of releases, half of them with the canary, >= 20.
    seed: seed of the noise.

  Raises:
    IncompatibleStages: the noise is correlated over releases; this game cannot audit it.
    ValueError: a number is out of range.
  """
  validate.integer(at_least=LEAST, trials=trials)
  bound = _bound(layers, claimed)

  def sends(ctx: Context) -> jax.Array:
    return jnp.where((ctx.client.id == 0) & (ctx.round % 2 == 0), 1.0, 0.0)

  chooser = round_robin(_FEW, _FEW)
  scores = _play(chooser, _FEW, sends, layers, claimed, params, trials, seed)
  found, best = bounds('epsilon_clopper_pearson', scores[0::2], scores[1::2], delta)
  everyone = Draws('poisson', _FEW, _FEW, _FEW)  # rate 1: no amplification by sampling
  upper = account.epsilon(everyone, claimed, 1, delta, bound=bound).epsilon
  return Finding('release', upper, found, best, delta, trials)


def draw(
  sampler: Callable[[int], Layer],
  layers: tuple[Layer, ...],
  claimed: Mechanism,
  params: Any,
  *,
  delta: float,
  trials: int = 100_000,
  seed: int = 0,
) -> Finding:
  """Returns the finding of the membership game on one round: the draw of the cohort, and the noise.

  The canary is one client more. All others send its update with the opposite sign: where the size
  of a cohort is fixed, the canary takes the place of one of them, and moves the sum by twice the
  bound.

  Args:
    sampler: number of clients -> the layer that draws a cohort; its `Draws` is what is claimed.
    layers: the layers from the clip to the noise, in client order.
    claimed: the noise that they claim to add.
    params: the model's parameters; see `release`.
    delta: delta of the claim.
    trials: number of rounds, half of them with the canary, >= 20.
    seed: seed of the draws and of the noise.

  Raises:
    IncompatibleStages: the noise is correlated over releases, or no claim is made for a client
      more.
    ValueError: a number is out of range.
  """
  validate.integer(at_least=LEAST, trials=trials)
  bound = _bound(layers, claimed)
  scores = []
  for number, canary in ((CLIENTS, 0), (CLIENTS - 1, -1)):

    def sends(ctx: Context, canary: int = canary) -> jax.Array:
      return jnp.where(ctx.client.id == canary, 1.0, -1.0)

    how = (layers, claimed, params, trials // 2, seed + 1 + canary)
    scores.append(_play(sampler(number), number, sends, *how))
  found, best = bounds('epsilon_clopper_pearson', scores[0], scores[1], delta)
  law = sampler(CLIENTS).fact(Draws)
  more = 'add_or_remove_one'
  upper = account.epsilon(law, claimed, 1, delta, adjacency=more, bound=bound).epsilon
  return Finding('draw', upper, found, best, delta, trials)


def _bound(layers: tuple[Layer, ...], claimed: Mechanism) -> Bound | None:
  """Returns the bound that the noise is scaled to, or None if it is known only inside a round.

  Raises:
    IncompatibleStages: no game on single releases can audit this noise.
  """
  noisy = Round(layers).having(Noises)
  kinds = {(noise.trust, noise.unit) for _, _, noise in noisy}
  if claimed.correlated or claimed.carried or kinds - {('central', 'client')}:
    raise IncompatibleStages(
      'the game on one release must be played on fresh central noise by client, '
      f'got {claimed!r} of {sorted(kinds)}: audit it in one run.'
    )
  bound = Round(layers).bound(*noisy[0][:2], {}) if noisy else None
  return None if bound is None or IN_ROUND in bound else bound


def _play(
  chooser: Layer,
  number: int,
  sends: Callable[[Context], jax.Array],
  layers: tuple[Layer, ...],
  claimed: Mechanism,
  params: Any,
  trials: int,
  seed: int,
) -> np.ndarray:
  """Returns the scores of so many releases, [trials]: the sum along the canary's update.

  Args:
    chooser: draws the cohort of each release.
    number: clients of the population.
    sends: context -> 1 where a client sends the canary's update, -1: its opposite, 0: zeros.
    layers: the layers from the clip to the noise.
    claimed: the noise that they claim to add.
    params: the model's parameters.
    trials: number of releases.
    seed: seed of the draws and of the noise.
  """
  small = jax.tree.map(lambda x: jnp.zeros(min(x.size, 8), x.dtype), params)
  people = stack_clients([{'x': np.zeros((1, 1), np.float32)} for _ in range(number)])
  still = [_still(x) for x in layers]
  sim = simulate(
    compose(_game(claimed, sends), chooser, equal(divisor=1.0), *still),
    small,
    people,
    seed=seed,
    noise_seed=seed,  # an audit releases nothing, and is to be repeated
    execution=Execution(mode='vmap', devices=1),
    max_rounds=trials,
  )
  _, metrics = sim.run(sim.init(small), trials)
  return np.asarray(metrics['game/score'])


def _game(claimed: Mechanism, sends: Callable[[Context], jax.Array]) -> Layer:
  """Returns the algorithm of a game.

  The canary's update has one coordinate in each array, so that a fault of a clip per array shows.
  Under an L1 clip it has one coordinate in all: the corners of an L1 ball lie on the axes.
  """
  arrays = 1 if 'l1' in claimed.norms else None

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Message, Tree, Metrics]:
    sent = HUGE * sends(ctx)
    leaves, structure = jax.tree_util.tree_flatten(tree.zeros(task.params))
    leaves[:arrays] = [x.at[0].set(sent.astype(x.dtype)) for x in leaves[:arrays]]
    return Message(jax.tree_util.tree_unflatten(structure, leaves), jnp.float32(1), {}), state, {}

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Tree, Tree, Metrics]:
    seen = jnp.stack([x[0] for x in jax.tree.leaves(message.update)[:arrays]])
    return ctx.params, state, {'score': seen.sum()}

  return Layer('game', client=Stage(client, facts=(Trains(),)), server=Stage(server))


def _still(layer: Layer) -> Layer:
  """Returns the layer with its server_state reset in every release.

  Otherwise an adaptive clip norm would change from release to release.
  """
  stage: Any = layer.server
  inner = stage.apply

  def apply(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    message, _, metrics = inner(ctx, message, state)
    return message, state, metrics

  return layer._replace(server=stage._replace(apply=apply))
