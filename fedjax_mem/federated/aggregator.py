"""Aggregation of a round's messages on the server: the sides of one `Round`, run over objects."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Message, Rule, tree
from fedjax_mem.federated import recipe as recipes
from fedjax_mem.federated import rules
from fedjax_mem.federated.config import AggregationStrategy, NotEnoughClients, ServerConfig
from fedjax_mem.federated.inbox import Read
from fedjax_mem.federated.selection import Chooser
from fedjax_mem.secagg.aggregator import SecureAggregator
from fedjax_mem.secagg.errors import BelowThreshold
from fedjax_mem.stages.select.contribution import Score

Now = tuple[np.uint32, np.int32]  # seed of the run, round from 0


class Stepped(NamedTuple):
  """The results of the server's step.

  Attributes:
    params: the new parameters.
    loss: mean loss before training in nats: over all examples, or over clients where all have equal
      weights; NaN where it is not known.
  """

  params: Any
  loss: float


class Aggregator:
  """Keeps the server states of a run, and takes the server's step of each round.

  Args:
    config: config of the server.
    chooser: selects the clients, and learns from each step.

  Raises:
    ValueError: options that the aggregation does not have.
  """

  def __init__(self, config: ServerConfig, chooser: Chooser):
    self._config, self._chooser = config, chooser
    self.rules = rules.of(config)
    self._states: dict[str, Any] = {}

  def step(
    self, round: int, params: Any, reads: list[Read], masks: SecureAggregator | None
  ) -> Stepped:
    """Takes the step of a round, and updates the server states and the scores.

    Args:
      round: number of the round, from 0.
      params: parameters that the clients started from.
      reads: the sound updates, in the order in which they are added.
      masks: secure aggregation that masked the updates, or None.

    Raises:
      NotEnoughClients: fewer updates than the rule or the masks need; nothing has changed.
      ValueError: clients whose updates cannot be added, or a result that is not finite; nothing has
        changed.
    """
    sgd = self._config.aggregation is AggregationStrategy.FEDERATED_SGD
    if sgd and len({x.client.config.learning_rate for x in reads}) > 1:
      raise ValueError(
        'learning_rate must be the same for all clients under FedSGD, where it is the step of the '
        'server, got several.'
      )
    # Codes that add are summed before decoding, but only if all clients compress alike and no layer
    # looks at single messages.
    alike = len({x.client.config.compression_config for x in reads}) == 1
    alike &= self._config.selection_strategy != 'contribution'
    sides, now = self._sides(reads, alike), (np.uint32(self._config.seed), np.int32(round))
    states = {**sides.states(params), **self._states}
    if masks is not None:
      total, loss = _unmasked(masks, reads)
    else:
      loss = _mean_loss(reads)
      weighted = self._chooser.weighted
      messages = [weighted(x.client, x.message if alike else x.whole(params)) for x in reads]
      total = self._ruled(sides, params, messages, states, now) if self.rules else _sum(messages)
    new, states = sides.server(params, total, states, *now)
    if not bool(tree.finite(new)):
      raise ValueError('the new parameters must be finite, got NaN or infinity: nothing changed.')
    self._learn(params, reads, states, now)
    self._states = states
    return Stepped(new, loss)

  def _sides(self, reads: list[Read], coded: bool) -> recipes.Sides:
    """Returns the sides of the server's round, on messages as sent (`coded`) or decoded."""
    chooser, _ = self._chooser.of_round(self._least)
    changed: dict[str, Any] = {} if coded else {'compression': None}
    return reads[0].client.sides(chooser, self.rules, **changed)

  @property
  def _least(self) -> int | None:
    """Least number of messages that the rule needs, or None without a rule."""
    return next(((x.fact(Rule) or Rule()).least for x in self.rules), None)

  def _ruled(
    self,
    sides: recipes.Sides,
    params: Any,
    messages: list[Message],
    states: dict[str, Any],
    now: Now,
  ) -> Message:
    """Returns the sum after the server's rule."""
    (layer,) = self.rules
    _, rows = self._chooser.of_round(self._least)
    stack = recipes.stacked(messages, rows)
    total: Message
    total, _ = sides.cohort(layer.name, params, stack, None, states, *now)
    if not total.weight > 0:
      why = (layer.fact(Rule) or Rule()).why
      raise NotEnoughClients(
        f'updates must be as many as {layer.name!r} needs, {why}, got {len(messages)}: the round '
        'is skipped, and the model stays as it is.'
      )
    return total

  def _learn(self, params: Any, reads: list[Read], states: dict[str, Any], now: Now) -> None:
    """Passes a round's updates to the chooser, which learns from them."""
    if self._config.selection_strategy == 'random':
      return
    seen = [(x.client, x.update.metadata, x.whole(params)) for x in reads]
    sides = self._sides(reads, False)

    def judge(stack: Message, rows: Score) -> Score:
      scored: Score = sides.cohort('select', params, stack, rows, states, *now)[1]
      return scored

    self._chooser.learn(seen, judge)


def _sum(messages: list[Message]) -> Message:
  total: Message = tree.zeros(messages[0])
  for message in messages:
    total = tree.add(total, message)
  return total


def _mean_loss(reads: list[Read]) -> float:
  """Returns the mean loss of all examples that clients report; NaN if none reports one."""
  said = [(x.update.metadata.loss_before, x.update.metadata.num_examples) for x in reads]
  pairs = [(loss, n) for loss, n in said if loss is not None and n and np.isfinite(loss)]
  if not pairs:
    return float('nan')
  losses, counts = zip(*pairs, strict=True)
  return float(np.average(losses, weights=counts))


def _unmasked(masks: SecureAggregator, reads: list[Read]) -> tuple[Message, float]:
  """Returns the mean of masked updates as one message, and the mean loss from the same sum."""
  try:
    mean, loss = masks.secure_aggregate([x.message.update for x in reads])
  except BelowThreshold as error:
    raise NotEnoughClients(str(error)) from error
  return Message(jax.tree.map(jnp.asarray, mean), jnp.float32(1), {}), float(loss)
