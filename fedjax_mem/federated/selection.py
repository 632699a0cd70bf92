"""Who takes part: the samplers of the compiled rounds, over clients in this process."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Message, selector, tree
from fedjax_mem.engine.context import Broadcast, context
from fedjax_mem.federated.config import ServerConfig
from fedjax_mem.stages import select
from fedjax_mem.stages.select.importance import Seen, importance

_ATTEMPTS = 100


class Chooser:
  """Draws cohorts; what clients report is remembered for 'importance' and 'contribution'.

  'random': every set of clients is equally likely. The others draw clients in proportion to their
  weight times what was last seen of them: the norm of the update ('importance'), or by how much
  training lowered the loss ('contribution'); an update then counts by the inverse of its chance.
  """

  def __init__(self, config: ServerConfig):
    self._config = config
    self._values: dict[str, float] = {}
    self._chances: dict[str, float] = {}

  def choose(self, clients: list[Any], params: Any, round: int) -> list[Any]:
    """Returns the clients of a round, at most `max_clients`, in the order drawn."""
    number = len(clients)
    size = min(self._config.max_clients, number)
    if self._config.selection_strategy == 'random':
      layers: tuple[Layer, ...] = (select.uniform(number, size),)
      table: Any = ()
    else:
      layers = importance(number, size, capacity=size)
      values = [self._values.get(x.client_id) for x in clients]
      table = Seen(
        jnp.asarray([v or 0.0 for v in values], jnp.float32),
        jnp.asarray([v is not None for v in values]),
      )
    name, sampler = selector(layers)
    for attempt in range(_ATTEMPTS):
      seed = jnp.uint32(self._config.seed)
      cast = Broadcast(seed, jnp.int32(round), params, None, {name: ()}, {}, jnp.zeros(0))
      ctx = context(layers[0], 'select', cast, {})
      if attempt:  # a cohort of random size may be too small
        ctx = ctx._replace(key=jax.random.fold_in(ctx.key, attempt))
      cohort, _, _ = sampler.apply(ctx, table, ())
      ids = [int(i) for i, real in zip(cohort.id, cohort.real, strict=True) if real]
      if len(ids) >= min(self._config.min_clients, size):
        break
    chances = {int(i): float(c) for i, c in zip(cohort.id, cohort.chance, strict=True)}
    self._chances = {clients[i].client_id: chances[i] for i in ids}
    return [clients[i] for i in ids]

  def weighted(self, client: Any, message: Message) -> Message:
    """Returns the message times the inverse of its client's chance, where chances differ."""
    if self._config.selection_strategy == 'random':
      return message
    return tree.scale(1 / self._chances.get(client.client_id, 1.0), message)

  def learn(self, reports: list[tuple[Any, Any]]) -> None:
    """Remembers what (client, metadata) of a round say."""
    if self._config.selection_strategy == 'random':
      return
    for client, said in reports:
      lowered = max(0.0, said.loss_before - said.loss_after)
      by_norm = self._config.selection_strategy == 'importance'
      self._values[client.client_id] = said.num_examples * (said.norm if by_norm else lowered)
