"""An attempt to break a claim of privacy: canary clients, and what an adversary learns of them.

Two attacks, both by jax-privacy's estimators, each a lower bound on epsilon at a stated confidence
beside the accountant's upper bound. A lower bound above the upper one proves a fault; one below it
proves nothing.

- `release`: the membership game on one release. A canary whose update is one coordinate, as large
  as the clip allows, takes part in every second of many releases of the sum (nothing is trained).
- `one_run`: many canaries, each with a direction of its own, take part in one whole training run or
  stay out of it by a fair coin; the final parameters are scored along each direction (Steinke,
  Nasr, Jagielski 2023, arXiv 2305.08846).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem import account
from fedjax_mem.core import (
  Context,
  IncompatibleStages,
  Layer,
  Mechanism,
  Message,
  Population,
  Sampling,
  Stage,
  Task,
  Traits,
  keys,
  onion,
  stack_clients,
  tree,
  validate,
)
from fedjax_mem.engine import Execution, simulate
from fedjax_mem.experiment import devices
from fedjax_mem.experiment.build import Parts, build, build_layers
from fedjax_mem.experiment.config import Config
from fedjax_mem.experiment.privacy import open_books
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

SIGNIFICANCE = 0.05
_HUGE = 1e6  # before the clip: the canary's update is then exactly the bound
_CLIENTS = 4  # of the game on one release: the canary and some that send zeros


class Finding(NamedTuple):
  """What an attack found.

  Attributes:
    attack: 'release' or 'one_run'.
    claimed: the accountant's upper bound on epsilon.
    found: the lower bound on epsilon, at 1 - `significance` confidence.
    delta: of both.
    trials: releases, or canaries.
    significance: probability that a sound mechanism is found guilty, at the most.
  """

  attack: str
  claimed: float
  found: float
  delta: float
  trials: int
  significance: float = SIGNIFICANCE

  @property
  def broken(self) -> bool:
    """Whether the claim is refuted."""
    return self.found > self.claimed


def _estimator(took_part: np.ndarray, left_out: np.ndarray) -> Any:
  try:
    from jax_privacy import auditing  # imported where it is used: it takes seconds
  except ImportError as error:
    raise ValueError("the audit needs jax-privacy: pip install 'fedjax_mem[privacy]'.") from error
  return auditing.CanaryScoreAuditor(took_part, left_out)


def release(
  layers: tuple[Layer, ...],
  claimed: Mechanism,
  params: Any,
  *,
  delta: float,
  trials: int = 20_000,
  seed: int = 0,
) -> Finding:
  """Returns what the membership game finds out about one release of the sum.

  Args:
    layers: the layers from the clip to the noise, in client order.
    claimed: the noise that they claim to add.
    params: the model's parameters; the game is played on arrays of at most eight values each, since
      noise is independent from one coordinate to the next.
    delta: of the claim.
    trials: releases, half of them with the canary, >= 2.
    seed: of the noise.

  Raises:
    IncompatibleStages: noise that is correlated over releases, which this game cannot judge.
    ValueError: a number is out of range.
  """
  validate.integer(at_least=2, trials=trials)
  if claimed.name in ('tree', 'matrix') or claimed.trust != 'central' or claimed.unit != 'client':
    raise IncompatibleStages(
      'the game on one release must be played on fresh central noise by client, '
      f'got {claimed.trust} {claimed.name!r} noise by {claimed.unit}: audit it in one run.'
    )
  small = jax.tree.map(lambda x: jnp.zeros(min(x.size, 8), x.dtype), params)
  people = stack_clients([{'x': np.zeros((1, 1), np.float32)} for _ in range(_CLIENTS)])
  sim = simulate(
    onion(_game(), round_robin(_CLIENTS, _CLIENTS), equal(divisor=1.0), *layers),
    small,
    people,
    seed=seed,
    execution=Execution(mode='vmap', devices=1),
    max_rounds=trials,
  )
  _, metrics = sim.run(sim.init(small), trials)
  scores = metrics['game/score']
  found = _estimator(scores[0::2], scores[1::2]).epsilon_clopper_pearson(SIGNIFICANCE, delta)
  everyone = Sampling('poisson', _CLIENTS, _CLIENTS, _CLIENTS)  # at rate 1: nothing is gained
  upper = account.epsilon(everyone, claimed, 1, delta).epsilon
  return Finding('release', upper, float(found), delta, trials)


def _game() -> Layer:
  """Returns the 'algorithm' of the game: client 0 sends the canary in even rounds, others zeros."""

  def client(ctx: Context, task: Task, state):
    on = (ctx.me.id == 0) & (ctx.round % 2 == 0)
    leaves, structure = jax.tree_util.tree_flatten(tree.zeros(task.params))
    leaves[0] = leaves[0].at[0].set(jnp.where(on, _HUGE, 0.0))
    return Message(jax.tree_util.tree_unflatten(structure, leaves), jnp.float32(1), {}), state, {}

  def server(ctx: Context, message: Message, state):
    return ctx.params, state, {'score': jax.tree.leaves(message.payload)[0][0]}

  return Layer('game', Stage(client), Stage(server), traits=Traits(kind='algorithm'))


def one_run(
  config: Config, parts: Parts, *, canaries: int = 1000, layers: tuple[Layer, ...] | None = None
) -> Finding:
  """Returns what one whole training run with canary clients gives away.

  The canaries are clients added to the population; the sampling rate and the noise stay those of
  the experiment, so the claim is too.

  Args:
    config: the experiment.
    parts: what it describes.
    canaries: clients added, >= 2.
    layers: the onion for the enlarged population, if not that of the experiment (to audit a fault).

  Raises:
    ValueError: no claim to audit, or fewer than two canaries.
  """
  validate.integer(at_least=2, canaries=canaries)
  delta = config.privacy.delta
  if delta is None:
    raise ValueError('privacy.delta must be given for a run with noise, got none.')
  number = parts.data.num_clients
  larger = enlarged(config, number, canaries)
  made = build_layers(larger, parts.model, number + canaries) if layers is None else layers
  key = keys.role_key(keys.layer_key(keys.seed_key(config.seed), 0, 'audit'), 'init')
  inside = np.asarray(jax.random.bernoulli(key, 0.5, (canaries,)))
  place = next(i for i, x in enumerate(made) if x.traits.kind == 'algorithm') + 1
  layer = _canaries(number, jnp.asarray(inside), key)
  onion_ = (*made[:place], layer, *made[place:])
  people = _with_canaries(parts.data.population(), canaries)
  sim = simulate(
    onion_,
    parts.params,
    people,
    seed=config.seed,
    max_rounds=min(64, config.rounds),
    transforms=(parts.data.preprocess,),
  )
  state, done = sim.init(parts.params), 0
  while done < config.rounds:
    state, metrics = sim.run(state, min(sim.max_rounds, config.rounds - done))
    done += len(metrics['clients'])
  moved = tree.sub(parts.params, jax.device_get(state.params))
  scores = np.asarray(_scores(moved, key, canaries))
  found = _estimator(scores[inside], scores[~inside]).epsilon_one_run(SIGNIFICANCE, delta)
  return Finding('one_run', claimed_epsilon(config, made), float(found), delta, canaries)


def claimed_epsilon(config: Config, layers: tuple[Layer, ...]) -> float:
  """Returns the epsilon that the ledger will state at the end of the experiment.

  Raises:
    ValueError: nothing adds central noise by client.
  """
  books = open_books(config, layers, 1)
  if books is None or books.central is None:
    raise ValueError('the audit must be of a run with central noise by client, got none.')
  return books.central.guarantee(min(config.rounds, books.central.allowed)).epsilon


def enlarged(config: Config, number: int, canaries: int) -> Config:
  """Returns the experiment for more clients at the same sampling rate and the same weights."""
  grown = (number + canaries) / number
  selection = dataclasses.replace(
    config.selection, cohort_size=max(1, round(config.selection.cohort_size * grown))
  )
  options = dict(config.weighting.options)
  if 'divisor' in options:
    options['divisor'] = options['divisor'] * grown
  data = dataclasses.replace(config.data, num_clients=None)
  weighting = dataclasses.replace(config.weighting, options=options)
  return dataclasses.replace(config, selection=selection, weighting=weighting, data=data)


def _with_canaries(people: Population, canaries: int) -> Population:
  """Returns the population with clients added that hold one example each: it is not used."""
  start = jnp.concatenate([people.start, jnp.zeros(canaries, jnp.int32)])
  count = jnp.concatenate([people.count, jnp.ones(canaries, jnp.int32)])
  return dataclasses.replace(people, start=start, count=count)


def _direction(like: Any, key: jax.Array, number: jax.Array) -> Any:
  """Returns the direction of a canary: random signs, the same for the client and the score."""
  leaves, structure = jax.tree_util.tree_flatten(like)
  own = jax.random.split(jax.random.fold_in(key, number), len(leaves))
  signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(own, leaves, strict=True)]
  return jax.tree_util.tree_unflatten(structure, signs)


def _canaries(number: int, inside: jax.Array, key: jax.Array) -> Layer:
  """Returns the layer that makes the clients from `number` on canaries, those not inside silent."""

  def client(ctx: Context, message: Message, state):
    mine = ctx.me.id - number
    canary = mine >= 0
    on = inside.at[mine].get(mode='clip')
    huge = tree.scale(jnp.float32(_HUGE), _direction(message.payload, key, mine))
    payload = tree.select(canary, huge, message.payload)
    weight = jnp.where(canary, on.astype(jnp.float32), message.weight)
    return message._replace(payload=tree.keep(weight > 0, payload), weight=weight), state, {}

  return Layer('canaries', Stage(client))


def _scores(moved: Any, key: jax.Array, canaries: int) -> jax.Array:
  """Returns the inner product of what was learned with each canary's direction, [canaries]."""

  def score(number: jax.Array) -> jax.Array:
    sign = _direction(moved, key, number)
    parts = jax.tree.map(lambda a, b: jnp.vdot(jnp.asarray(a), b), moved, sign)
    return sum(jax.tree.leaves(parts), jnp.float32(0))

  return jax.jit(lambda: jax.lax.map(score, jnp.arange(canaries, dtype=jnp.int32)))()


def audit(
  config: Config, *, data_dir: str | None = None, canaries: int = 1000, trials: int = 20_000
) -> list[Finding]:
  """Returns what both attacks find about an experiment, as it is configured.

  Args:
    config: the experiment; its noise must be central and by client.
    data_dir: where prepared data sets are.
    canaries: clients added to the one run.
    trials: releases of the membership game.

  Raises:
    ValueError: nothing adds noise.
  """
  devices.prepare(config.execution.devices)
  parts = build(config, data_dir)
  noisy = [x for x in parts.layers if x.traits.mechanism is not None]
  if not noisy or config.privacy.delta is None:
    raise ValueError('the audit must be of a run with noise and privacy.delta, got none.')
  found = []
  if noisy[0].traits.mechanism.name not in ('tree', 'matrix'):
    claimed = noisy[0].traits.mechanism
    delta = config.privacy.delta
    found.append(release(tuple(noisy), claimed, parts.params, delta=delta, trials=trials))
  return [*found, one_run(config, parts, canaries=canaries)]


def row(finding: Finding) -> dict[str, Any]:
  """Returns a finding as a row of a table."""
  return {
    'attack': finding.attack,
    'epsilon at least': round(finding.found, 3),
    'epsilon claimed': round(finding.claimed, 3),
    'delta': finding.delta,
    'trials': finding.trials,
    'verdict': 'BROKEN' if finding.broken else 'not refuted',
  }
