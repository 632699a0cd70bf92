"""Selection of clients: the samplers of the compiled rounds, applied to client objects."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem import engine
from fedjax_mem.core import Layer, Message, Round, keys, tree
from fedjax_mem.federated import recipe
from fedjax_mem.federated.config import ServerConfig
from fedjax_mem.federated.data import LocalData
from fedjax_mem.stages import select
from fedjax_mem.stages.select.contribution import Score
from fedjax_mem.stages.select.importance import Seen

_ATTEMPTS = 100
_OPTIONS = {
  'random': (),
  'importance': ('explore',),
  'contribution': ('method', 'explore', 'sweeps', 'truncation', 'subsets', 'batch_size'),
}
Loss = Callable[..., Any]
Judge = Callable[[Message, Score], Score]  # (stack of messages [C, ...], rows [C]) -> new rows


class Chooser:
  """Draws cohorts, and keeps what the sampler has learned of the clients.

  'random': every set of clients is equally likely. 'importance': a client's inclusion probability
  is in proportion to the norm of its last weighted update, which it reports, and its update is
  divided by that probability. If more than `max_clients` are drawn, a uniform sample of them is
  taken; this hardly changes the mean, which is self-normalised. 'contribution': clients whose
  updates improved the model on the server's validation examples are preferred; see
  `stages.select.contribution`.

  Raises:
    ValueError: an option that the strategy does not have, or no validation examples.
  """

  def __init__(self, config: ServerConfig, validation: LocalData | None):
    self._config = config
    self._kind = config.selection_strategy
    self._options = dict(config.selection_options or {})
    self._validation = validation
    self._norms: dict[str, float] = {}
    self._chances: dict[str, float] = {}
    self._scores: dict[str, Score] = {}
    self._layers: dict[Any, tuple[Layer, ...]] = {}
    self._judging: Layer | None = None  # sampler of the last choice, if it scores messages
    self._size = 0
    if not set(self._options) <= set(_OPTIONS[self._kind]):
      raise ValueError(
        f'selection_options must be of {_OPTIONS[self._kind]!r} for {self._kind!r}, got '
        f'{config.selection_options!r}.'
      )
    if self._kind == 'contribution' and validation is None:
      raise ValueError(
        "validation_data must be given for selection_strategy='contribution', got None: examples "
        'that no client has, such as FederatedServer(config, model, validation_data=(x, y)).'
      )
    self._made(1, 1, lambda params, batch, key: params, 1.0)  # refuses values out of range

  def layers(self, number: int, size: int, loss: Loss, step: float) -> tuple[Layer, ...]:
    """Returns the layers that select `size` of `number` clients.

    Args:
      number: number of clients, N.
      size: size of the cohort, C.
      loss: loss of the model, (params, batch, key) -> [B].
      step: learning rate of the server.
    """
    key = (number, size, loss, step)
    if key not in self._layers:
      self._layers[key] = self._made(number, size, loss, step)
    return self._layers[key]

  def _made(self, number: int, size: int, loss: Loss, step: float) -> tuple[Layer, ...]:
    if self._kind == 'random':
      return (select.uniform(number, size),)
    if self._kind == 'importance':
      return select.importance(number, size, capacity=size, **self._options)
    held = None if self._validation is None else self._validation.batch()
    return (select.contribution(number, size, loss, held, step=step, **self._options),)

  def choose(self, clients: list[Any], params: Any, round: int, step: float) -> list[Any]:
    """Returns the clients of a round, at most `max_clients`, in the order drawn.

    Args:
      clients: N clients with one model.
      params: the server's parameters.
      round: number of the round, from 0.
      step: learning rate of the server.
    """
    number = len(clients)
    size = min(self._config.max_clients, number)
    layers = self.layers(number, size, clients[0].model.model.loss, step)
    seed = self._config.seed
    table = self._table([x.client_id for x in clients])
    for attempt in range(_ATTEMPTS):
      empty = {x.name: () for x in layers}
      cast = engine.broadcast(seed, round, params, root=keys.open_root(seed), servers=empty)
      # A cohort of random size may be too small: then it is drawn again.
      cast, cohort, _ = engine.select_pass(Round(layers), cast, lambda name: table, attempt)
      ids = [int(i) for i, real in zip(cohort.id, cohort.real, strict=True) if real]
      if len(ids) >= min(self._config.min_clients, size):
        break
    chances = {int(i): float(c) for i, c in zip(cohort.id, cohort.chance, strict=True)}
    self._chances = {clients[i].client_id: chances[i] for i in ids}
    self._judging = layers[0] if self._kind == 'contribution' else None
    self._size = size
    return [clients[i] for i in ids]

  def of_round(self, least: int | None) -> tuple[Layer, int]:
    """Returns (the layer that selects in the server's round, number of rows C of the stack).

    Args:
      least: least number of messages that the server's rule needs. None: messages are only added,
        so the server's round has one client, as the clients' own rounds do.
    """
    if self._judging is not None:
      return self._judging, self._size
    rows = 1 if least is None else max(self._size, least)
    return recipe.given(rows), rows

  def _table(self, names: list[str]) -> Any:
    """Returns the sampler's table of client states, as the engine keeps it."""
    if self._kind == 'importance':
      values = [self._norms.get(x) for x in names]
      norms = jnp.asarray([v or 0.0 for v in values], jnp.float32)
      return Seen(norms, jnp.asarray([v is not None for v in values]))
    if self._kind == 'contribution':
      return self._rows(names)
    return ()

  def _rows(self, names: list[str]) -> Score:
    unscored = Score(jnp.float32(0), jnp.int32(0))
    rows = [self._scores.get(x, unscored) for x in names]
    stack: Score = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    return stack

  @property
  def scores(self) -> dict[str, float]:
    """Client id -> mean of its contributions over the rounds that it took part in."""
    return {name: float(x.score) for name, x in self._scores.items()}

  def weighted(self, client: Any, message: Message) -> Message:
    """Returns the message divided by its client's inclusion probability under 'importance'."""
    if self._kind != 'importance':
      return message
    return tree.scale(1 / self._chances.get(client.client_id, 1.0), message)

  def learn(self, seen: list[tuple[Any, Any, Message]], judge: Judge) -> None:
    """Updates norms or scores from the sound updates of a round.

    Args:
      seen: (client, metadata, decoded message before `weighted`) of each sound update.
      judge: cohort side of the sampler of the last choice, which scores messages.
    """
    if self._kind == 'importance':
      for client, metadata, _ in seen:
        self._norms[client.client_id] = metadata.num_examples * metadata.norm
    if self._kind != 'contribution':
      return
    names = [x.client_id for x, _, _ in seen]
    rows = self._rows(names + [''] * (self._size - len(names)))
    found = judge(recipe.stacked([x for _, _, x in seen], self._size), rows)
    for i, name in enumerate(names):
      self._scores[name] = Score(found.score[i], found.rounds[i])
