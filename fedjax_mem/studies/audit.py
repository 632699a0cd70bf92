"""Audit of a privacy claim by canary clients: empirical lower bounds on epsilon.

Three attacks use jax-privacy's estimators. Each gives a lower bound on epsilon, at a stated
confidence, to compare with the accountant's upper bound, and the bound that a perfect attack would
give with as many trials. A lower bound above the upper bound refutes the claim. One below it proves
nothing, and if no attack could have given more, the audit is void: it needs more trials.

- `games.release`: the membership game on one release. The canary's update is one coordinate of each
  array, as large as the clip allows. It takes part in every second of many releases of the sum
  (nothing is trained).
- `games.draw`: the same, on releases of the sum over a cohort that is drawn from a population with
  or without the canary, for claims of Poisson sampling.
- `one_run`: many canaries, each with its own direction. A fair coin decides for each whether it
  takes part in one whole run or stays out. The final parameters are scored along each direction
  (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846). All other clients send zeros: a claim must hold
  for such data too, and updates that many clients agree on would hide a canary better than the
  noise does.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.account import Ledger
from fedjax_mem.config import registry
from fedjax_mem.config.build import build, build_layers, stage_arguments
from fedjax_mem.config.load import Config
from fedjax_mem.config.parts import Parts
from fedjax_mem.config.privacy import settled
from fedjax_mem.config.sections import StageSection
from fedjax_mem.core import (
  Context,
  Layer,
  Message,
  Metrics,
  Population,
  Stage,
  Tree,
  compose,
  keys,
  tree,
  validate,
)
from fedjax_mem.engine import simulate
from fedjax_mem.runner import devices
from fedjax_mem.runner.ledgers import open_ledgers
from fedjax_mem.stages.select import SAMPLERS
from fedjax_mem.studies import games
from fedjax_mem.studies.games import HUGE, Finding

# Delta of the games, where that of the claim is smaller. The accountant claims an epsilon for every
# delta; that of a small one is about tails of the noise that are too rare for the trials.
_DELTA = 1e-2
_INTEGERS = ('integers', 'distributed', 'mask')  # stages whose options depend on the cohort's size


def one_run(
  config: Config, parts: Parts, *, canaries: int = 1000, layers: tuple[Layer, ...] | None = None
) -> Finding:
  """Returns the finding of one whole training run with canary clients.

  The canaries are added to the population. The sampling rate, the rounds and the noise stay those
  of the experiment, so that its claim holds for this run, too.

  Args:
    config: the experiment.
    parts: its parts.
    canaries: number of clients added, >= 20; limited to the number of the model's parameters, since
      no two canaries share a parameter.
    layers: layers of the round for the enlarged population, if not those of the experiment (to
      audit a fault on purpose). The claim is still that of the experiment.

  Raises:
    ValueError: no claim to audit, or fewer than 20 canaries.
  """
  validate.integer(at_least=games.LEAST, canaries=canaries)
  canaries = min(canaries, sum(x.size for x in jax.tree.leaves(parts.params)))
  number = parts.data.num_clients
  ledger = _ledger(config, parts)
  delta, rounds = ledger.entry.target_delta, ledger.allowed
  if layers is None:  # with the noise of the experiment, not calibrated again
    chooser = parts.layers.drawing
    given = stage_arguments(parts.model, chooser)
    larger = enlarged(settled(config, chooser, given), number, canaries)
    layers = build_layers(larger, parts.model, number + canaries)
  key = keys.role_key(keys.layer_key(keys.seed_key(config.seed), 0, 'audit'), 'init')
  inside = np.asarray(jax.random.bernoulli(key, np.float32(0.5), (canaries,)))
  made = compose(*layers)
  place = made.place(made.algorithm) + 1
  owners = _owners(parts.params, canaries)
  layer = _canaries(number, inside, owners)
  round_ = (*made[:place], layer, *made[place:])
  people = _with_canaries(parts.data.population(), canaries)
  sim = simulate(
    round_,
    parts.params,
    people,
    seed=config.seed,
    noise_seed=config.seed,  # an audit releases nothing, and is to be repeated
    max_rounds=min(64, rounds),
    transforms=(parts.data.preprocess,),
  )
  state, done = sim.init(parts.params), 0
  while done < rounds:
    state, metrics = sim.run(state, min(sim.max_rounds, rounds - done))
    done += len(metrics['clients'])
  moved = tree.sub(parts.params, jax.device_get(state.params))
  scores = _scores(moved, owners, canaries)
  found, best = games.bounds('epsilon_one_run', scores[inside], scores[~inside], delta)
  claimed = ledger.guarantee(rounds).epsilon
  return Finding('one_run', claimed, found, best, delta, canaries)


def _ledger(config: Config, parts: Parts) -> Ledger:
  """Returns the central ledger of the experiment, which holds its claim.

  Raises:
    ValueError: no stage adds central noise by client, or there is no delta.
  """
  ledgers = open_ledgers(config, parts.layers, parts.data.counts)
  if ledgers is None or ledgers.central is None:
    raise ValueError('the audit must be of a run with central noise by client, got none.')
  return ledgers.central


def enlarged(config: Config, number: int, canaries: int) -> Config:
  """Returns the experiment for more clients at the same sampling rate and the same weights.

  The cohort is rounded down. So the rate is at most that of the experiment, and its claim holds.
  """
  more = number + canaries
  size = config.selection.cohort_size * more // number
  data = dataclasses.replace(config.data, num_clients=None)
  selection = dataclasses.replace(config.selection, cohort_size=size)
  weighting = dataclasses.replace(
    config.weighting, options=_grown(config.weighting.options, 'divisor', more / number)
  )
  stages = tuple(
    dataclasses.replace(x, options=_grown(x.options, 'expected', more / number))
    for x in _shared(config.stages, more / number)
  )
  return dataclasses.replace(
    config, data=data, selection=selection, weighting=weighting, stages=stages
  )


def _grown(options: dict[str, Any], name: str, factor: float) -> dict[str, Any]:
  """Returns the options with `name`, if given, multiplied by a factor."""
  return {**options, name: options[name] * factor} if name in options else options


def _shared(stages: tuple[StageSection, ...], factor: float) -> tuple[StageSection, ...]:
  """Returns the stages with the options of integer stages adapted to a larger cohort.

  With the `shares` of the experiment, the larger cohort would add more noise than claimed. With its
  `bits`, the quantisation grid would be coarser. Rounding the shares down keeps the claim.
  """
  found = [x for x in stages if x.use in _INTEGERS]
  more = math.ceil(math.log2(factor)) if all('bits' in x.options for x in found) else 0

  def one(stage: StageSection) -> StageSection:
    options = dict(stage.options)
    change = {
      'shares': lambda value: math.floor(value * factor),
      'clients': lambda value: math.ceil(value * factor),
      'bits': lambda value: min(value + more, 32),
    }
    options |= {name: change[name](options[name]) for name in change if name in options}
    return dataclasses.replace(stage, options=options)

  return tuple(one(x) if x in found else x for x in stages)


def _with_canaries(people: Population, canaries: int) -> Population:
  """Returns the population with clients added; each holds one example, which is not used."""
  start = jnp.concatenate([people.start, jnp.zeros(canaries, jnp.int32)])
  count = jnp.concatenate([people.count, jnp.ones(canaries, jnp.int32)])
  return dataclasses.replace(people, start=start, count=count)


def _owners(like: Any, canaries: int) -> Any:
  """Returns, for each parameter, the number of the canary that it belongs to, int32.

  A canary's direction is the parameters that belong to it. No two directions share a parameter, so
  that canaries do not disturb each other's scores.
  """
  leaves, structure = jax.tree_util.tree_flatten(like)
  starts = np.cumsum([0, *(x.size for x in leaves[:-1])])
  owners = [
    (np.arange(first, first + x.size) % canaries).astype(np.int32).reshape(x.shape)
    for first, x in zip(starts, leaves, strict=True)
  ]
  return jax.tree_util.tree_unflatten(structure, owners)


def _canaries(number: int, inside: np.ndarray, owners: Any) -> Layer:
  """Returns the layer that replaces all updates by those of canaries, or by zeros.

  Clients from `number` on are canaries, all others send zeros. A canary that is not `inside` takes
  no part: it has weight 0.
  """

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    mine = ctx.client.id - number
    canary = mine >= 0
    on = jnp.asarray(inside).at[mine].get(mode='clip')

    def huge(owner: np.ndarray, x: jax.Array) -> jax.Array:
      return jnp.where(canary & on & (owner == mine), HUGE, 0.0).astype(x.dtype)

    update = jax.tree.map(huge, owners, message.update)
    weight = jnp.where(canary, on.astype(jnp.float32), message.weight)
    return message._replace(update=update, weight=weight), state, {}

  return Layer('canaries', client=Stage(client))


def _scores(moved: Any, owners: Any, canaries: int) -> np.ndarray:
  """Returns how far the parameters moved along each canary's direction, [canaries]."""
  scores = np.zeros(canaries)
  for x, owner in zip(jax.tree.leaves(moved), jax.tree.leaves(owners), strict=True):
    np.add.at(scores, owner, np.asarray(x))
  return scores


def audit(
  config: Config, *, data_dir: str | None = None, canaries: int = 1000, trials: int = 100_000
) -> list[Finding]:
  """Returns the findings of the attacks on an experiment.

  The games are played at a delta of at least 1e-2, for the epsilon that is claimed there. Of
  `audit(fm.load_config('digits_dp'))` no finding is 'refuted'; without a claim there is nothing to
  attack:

  >>> audit(fm.load_config('quickstart', ['data.num_clients=10']))
  Traceback (most recent call last):
    ...
  ValueError: the audit must be of a run with central noise by client, got none.

  Args:
    config: the experiment; its noise must be central and by client.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    canaries: largest number of clients added to the one run.
    trials: number of releases in each game.

  Raises:
    ValueError: no stage adds central noise by client.
  """
  devices.prepare(config.execution.devices)
  parts = build(config, data_dir)
  entry = _ledger(config, parts).entry
  claimed, found = entry.claim.mechanism, []
  if not (claimed.correlated or claimed.carried):
    noisy = tuple(x for x in parts.layers if x.name == entry.layer)
    how: dict[str, Any] = {'delta': max(entry.target_delta, _DELTA), 'trials': trials}
    found.append(games.release(noisy, claimed, parts.params, **how))
    if parts.layers.draws.scheme == 'poisson':
      sampler = lambda number: _sampler(config, number)
      found.append(games.draw(sampler, noisy, claimed, parts.params, **how))
  return [*found, one_run(config, parts, canaries=canaries)]


def _sampler(config: Config, number: int) -> Layer:
  """Returns the experiment's sampler for another population, of which it draws a half."""
  section = config.selection
  options = {k: x for k, x in section.options.items() if k not in ('rate', 'capacity')}
  given = {'num_clients': number, 'rate': 0.5, 'cohort_size': games.CLIENTS // 2}
  made: Layer = registry.made(
    'selection', 'name', section.name, SAMPLERS, options, registry.SAMPLER, **given
  )
  return made


def row(finding: Finding) -> dict[str, Any]:
  """Returns a finding as a row of a table."""
  return {
    'attack': finding.attack,
    'epsilon at least': round(finding.found, 3),
    'epsilon claimed': round(finding.claimed, 3),
    'provable at best': round(finding.best, 3),
    'delta': finding.delta,
    'trials': finding.trials,
    'verdict': finding.verdict,
  }
