"""Robust rules on the server's stack of updates: the layers of `stages.aggregate`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem import core, engine
from fedjax_mem.core import Layer, Member, Message, Round, scalar_member, tree
from fedjax_mem.federated.config import NotEnoughClients, ServerConfig
from fedjax_mem.stages.aggregate import AGGREGATION

# (messages, params, seed, round) -> their sum after the rule
Rule = Callable[[list[Message], Any, int, int], Message]


def layer(config: ServerConfig) -> Layer:
  """Returns the layer of a rule with the options of a config.

  Raises:
    ValueError: an unknown option, or one that the rule refuses.
  """
  make = AGGREGATION[config.aggregation.value]
  try:
    return make(**(config.options or {}))
  except TypeError as error:
    raise ValueError(
      f'options must be those of {config.aggregation.value!r}, got {config.options!r}: {error}'
    ) from error


def rule_of(config: ServerConfig) -> Rule | None:
  """Returns the rule of a config, or None where updates are simply added."""
  if not config.aggregation.robust:
    if config.options:
      raise ValueError(
        f'options must be left out for {config.aggregation.value!r}, got {config.options!r}.'
      )
    return None
  made = layer(config)

  @jax.jit
  def apply(stack: Message, params: Any, kept: Any, seed: jax.Array, round: jax.Array) -> Any:
    number = stack.weight.shape[0]
    on = jnp.ones(number, bool)
    ids = jnp.arange(number, dtype=jnp.int32)
    cohort = Member(ids, on, on, jnp.ones(number, jnp.float32))
    cast = engine.Cast(seed, round, params, cohort, {}, {}, jnp.zeros(0))
    specs = {made.name: engine.one_of(stack)}
    value = made.value(engine.context(made, 'init', cast, specs)) if kept is None else kept
    cast = cast._replace(servers={made.name: value})
    init = lambda id: made.row(engine.context(made, 'init', cast, specs, scalar_member(id)))
    stage: Any = made.cohort
    stack, _, _ = engine.cohort_pass(made, stage, cast, specs, stack, jax.vmap(init)(ids))
    total, servers, _, _ = engine.server_pass(Round([made]), cast, specs, tree.total(stack))
    return total, servers[made.name]

  kept: list[Any] = [None]  # what the rule's server side remembers of earlier rounds

  def rule(messages: list[Message], params: Any, seed: int, round: int) -> Message:
    stack = jax.tree.map(lambda *x: jnp.stack(x), *messages)
    total, state = apply(stack, params, kept[0], jnp.uint32(seed), jnp.int32(round))
    if not total.weight > 0:
      needs = made.fact(core.Rule) or core.Rule()
      raise NotEnoughClients(
        f'updates must be as many as {made.name!r} needs, {needs.why}, got {len(messages)}: the '
        'round is skipped, and the model stays as it is.'
      )
    kept[0] = state
    return total

  return rule
