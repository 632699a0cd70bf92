"""Simulation of server and client objects by the compiled engine."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem import account, engine, mechanisms
from fedjax_mem.account import Claim, Guarantee, calibrate
from fedjax_mem.core import (
  Bound,
  Draws,
  Mechanism,
  Noises,
  Round,
  State,
  compose,
  stack_clients,
  validate,
)
from fedjax_mem.engine import Execution
from fedjax_mem.federated import compression, rules
from fedjax_mem.federated import recipe as recipes
from fedjax_mem.federated.client import FederatedClient
from fedjax_mem.federated.config import AggregationStrategy, PrivacyConfig, ServerConfig
from fedjax_mem.federated.model import FederatedModel
from fedjax_mem.federated.secret import REPEATABLE
from fedjax_mem.stages import privacy as layers_of_privacy
from fedjax_mem.stages import select, weigh
from fedjax_mem.stages.select.contribution import Score


class SimulationResult(NamedTuple):
  """The results of a simulated run.

  Attributes:
    model: the global model after the last round.
    metrics: name -> [rounds, ...], as the engine reports them.
    covered: names of the metrics that the guarantee covers; it covers no other.
    guarantee: the privacy guarantee, with its level; None without noise.
    seconds: seconds of all rounds, without compilation.
    contributions: client id -> its score, for clients that took part; empty unless the server
      selects by 'contribution'.
  """

  model: FederatedModel
  metrics: dict[str, np.ndarray]
  covered: frozenset[str]
  guarantee: Guarantee | None
  seconds: float
  contributions: dict[str, float]


def simulate_federation(
  server: Any,
  clients: Any,
  *,
  privacy: str = 'local',
  rounds: int | None = None,
  execution: Execution | None = None,
  noise_seed: int | None = None,
) -> SimulationResult:
  """Returns a whole run of a server and its clients, done by the compiled engine.

  The result is that of the loop over the objects, to float tolerance, but for their noise. The
  objects do not change, except that all rounds are charged to every client's budget at first.

  >>> model = fm.models.build('logistic', (2,), 2)
  >>> data = np.eye(2, dtype=np.float32), np.array([0, 1])
  >>> configs = [fm.federated.ClientConfig(client_id=name, learning_rate=1.0) for name in 'abc']
  >>> server = fm.federated.FederatedServer(fm.federated.ServerConfig(rounds=5), model)
  >>> result = simulate_federation(server, [FederatedClient(x, model, data) for x in configs])
  >>> result.model.evaluate(*data)['accuracy']
  1.0

  Args:
    server: the server, which selects at 'random' or by 'contribution'; scores start at none.
    clients: clients with one model and, but for the id, one config; their data may have any sizes.
    privacy: 'local': each client noises its own update, if its config has privacy. 'central': the
      same budget by clip and noise on the sum, with far less noise, but the server is trusted.
    rounds: number of rounds; None: that of the server's config.
    execution: how the cohort is vectorised; None: the engine's default.
    noise_seed: seed of the noise, in [0, 2**32), as the guarantee then says; None: a fresh secret.

  Raises:
    PrivacyBudgetExceeded: the budget of a client does not cover all rounds; nothing is charged.
    ValueError: clients that differ, a strategy that needs objects, or no budget for 'central'.
    IncompatibleStages: settings that do not go together.
  """
  validate.one_of(('local', 'central'), privacy=privacy)
  clients, config = list(clients), server.config
  rounds = validate.integer(rounds=config.rounds if rounds is None else rounds)
  recipe = _common(clients)
  server.check_enough(len(clients), 'clients')
  _check(config, recipe)
  recipe = recipe._replace(sgd=config.aggregation is AggregationStrategy.FEDERATED_SGD)
  start = server._model or clients[0].model
  notes = (REPEATABLE,) if noise_seed is not None else ()
  layers, claim = _round(server, clients, recipe, rounds, notes if privacy == 'central' else None)
  sim = engine.simulate(
    compose(*layers, *rules.of(config)),
    start.params,
    stack_clients([{'x': x.data.x, 'y': x.data.y} for x in clients]),
    seed=config.seed,
    execution=execution,
    max_rounds=rounds,
    transforms=(recipe.transform,) if recipe.transform else (),
    noise_seed=noise_seed,
  )
  guarantee = _charged(clients, claim, rounds, notes)
  state, metrics, seconds = _timed(sim, start.params, rounds)
  model = FederatedModel(start.model, jax.device_put(jax.device_get(sim.scored(state))))
  return SimulationResult(model, metrics, sim.covered, guarantee, seconds, _scores(state, clients))


def _round(
  server: Any,
  clients: list[FederatedClient],
  recipe: recipes.Recipe,
  rounds: int,
  central: tuple[str, ...] | None,
) -> tuple[Round, Claim | None]:
  """Returns (layers of the run, claim of noise on the sum or None).

  Args:
    server: the server.
    clients: its clients.
    recipe: what they compute.
    rounds: number of rounds.
    central: notes of a claim of noise on the sum; None: clients add their own noise, if any.
  """
  number, cohort = len(clients), min(server.config.max_clients, len(clients))
  if central is not None:
    return _central(recipe, number, cohort, rounds, central)
  (chooser,) = server._chooser.layers(number, cohort, recipe.model.loss, recipe.server_rate)
  return recipe._replace(noise=_planned(clients, rounds)).layers(chooser), None


def _check(config: ServerConfig, recipe: recipes.Recipe) -> None:
  """Raises `ValueError` for strategies that only the objects themselves can run."""
  kind, selection = config.aggregation, config.selection_strategy
  if kind is AggregationStrategy.SECURE_AGGREGATION or selection == 'importance':
    raise ValueError(
      "selection_strategy must be 'random' or 'contribution' here, and sums in the clear, got "
      f'{selection!r} and {kind.value!r}.'
    )
  if selection != 'random' and recipe.compression and recipe.compression.method == 'random_k':
    raise ValueError(
      "compression_config must be of another method where the selection is by 'contribution', got "
      "'random_k', which is decoded in the sum alone."
    )
  if selection != 'random' and recipe.privacy is not None:
    raise ValueError(
      f"selection_strategy must be 'random' for clients with privacy, got {selection!r}."
    )


def _scores(state: State, clients: list[Any]) -> dict[str, float]:
  """Returns the scores of the clients that have one."""
  table = state.clients.get('select')
  if not isinstance(table, Score):
    return {}
  rows = zip(clients, np.asarray(table.score), np.asarray(table.rounds), strict=True)
  return {x.client_id: float(score) for x, score, rounds in rows if rounds}


def _timed(
  sim: engine.Simulation, params: Any, rounds: int
) -> tuple[State, dict[str, np.ndarray], float]:
  """Returns (state at the end, metrics, seconds without compilation) of a run."""
  state = sim.compile(sim.init(params))
  jax.block_until_ready(state)
  began = time.perf_counter()
  state, metrics = sim.run(state, rounds)
  seconds = time.perf_counter() - began
  return state, metrics, seconds


def _common(clients: list[FederatedClient]) -> recipes.Recipe:
  """Returns the recipe that all clients share; raises `ValueError` if one differs."""
  if not clients:
    raise ValueError('clients must be at least one, got none.')
  # The simulation sets the fields that depend on the server or on earlier releases.
  plain = [
    x.recipe()._replace(noise=0.0, secure=False, sgd=False, equal=bool(x.config.privacy_config))
    for x in clients
  ]
  for client, found in zip(clients, plain, strict=True):
    if found != plain[0]:
      wrong = [n for n, a, b in zip(found._fields, found, plain[0], strict=True) if a != b]
      raise ValueError(
        f'clients must share one model and one config, got {client.client_id!r} with another '
        f'{wrong[0]}.'
      )
  return plain[0]


def _planned(clients: list[FederatedClient], rounds: int) -> float:
  """Plans so many releases of each client, and returns their own noise multiplier.

  It is 0 without privacy. A client that has made a release before keeps its plan.

  Raises:
    ValueError: clients that add noise of different sizes, since they have made other releases.
  """
  spenders = [x.privacy for x in clients if x.privacy is not None]
  for x in spenders:
    x.plan(rounds)
  found = sorted({x.noise_multiplier for x in spenders})
  if len(found) > 1:
    raise ValueError(
      f'clients must have noise of one size, got noise multipliers {found!r}: some have made '
      'releases that were planned for another number of rounds.'
    )
  return found[0] if found else 0.0


def _charged(
  clients: list[FederatedClient], claim: Claim | None, rounds: int, notes: tuple[str, ...]
) -> Guarantee | None:
  """Charges all rounds to every client, and returns the guarantee of the one that spent most.

  Args:
    clients: all clients: each could be drawn in every round.
    claim: of noise in the sum; None: the clients' own.
    rounds: number of rounds.
    notes: what the guarantee has to say of this run.

  Raises:
    PrivacyBudgetExceeded: a budget does not cover the rounds; nothing is charged.
  """
  spenders = [x.privacy for x in clients if x.privacy is not None]
  made = [claim or x.claim for x in spenders]
  made = [dataclasses.replace(x, notes=tuple(dict.fromkeys((*x.notes, *notes)))) for x in made]
  for x, own in zip(spenders, made, strict=True):
    x.check(own, rounds)
  for x, own in zip(spenders, made, strict=True):
    x.charge(own, rounds)
  return max((x.get_privacy_spent() for x in spenders), key=lambda x: x.epsilon, default=None)


def _noise(layers: Round) -> tuple[Mechanism, Bound]:
  """Returns the noise mechanism of a round, and the bound that it is scaled to."""
  layer, side, noise = layers.having(Noises)[0]
  return noise.mechanism, layers.bound(layer, side, {})


def _central(
  recipe: recipes.Recipe, number: int, cohort: int, rounds: int, notes: tuple[str, ...]
) -> tuple[Round, Claim]:
  """Returns the layers of a round in which the server noises the sum, and what they claim."""
  config: PrivacyConfig | None = recipe.privacy
  if config is None or mechanisms.find(config.mechanism).norm != 'l2':
    raise ValueError(
      "privacy must be 'local' unless clients have a privacy_config with noise of an L2 norm, "
      f'got {config!r}.'
    )
  chooser = select.uniform(number, cohort)
  sampling: Any = chooser.fact(Draws)
  coded = (compression.layer(recipe.compression),) if recipe.compression else ()
  plain = recipe.algorithm(), chooser, weigh.equal(float(cohort)), *coded
  central = functools.partial(
    layers_of_privacy.central, config.max_grad_norm, mechanism=config.mechanism
  )
  noise = config.noise_multiplier
  if noise is None:
    like, bound = _noise(compose(*plain, central(1.0)))
    budget = config.epsilon, config.delta
    found = calibrate.noise_multiplier(*budget, sampling, rounds, like, bound=bound)
    noise = float(found.mechanism.noise_multiplier)
  layers = compose(*plain, central(noise))
  mechanism, bound = _noise(layers)
  how: dict[str, Any] = {'delta': config.delta, 'bound': bound, 'notes': notes}
  return layers, account.claim(sampling, mechanism, rounds=rounds, **how)
