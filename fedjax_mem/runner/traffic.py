"""Bytes that a round sends: up from the clients, and down to them.

Layers that encode report their own bytes. Without them, each client that arrives sends its update
uncompressed, and each selected client is sent the parameters uncompressed; what an algorithm
broadcasts beside them (`Broadcasts`) is counted in their size. Headers and checksums
count (`core/wire.py`); an update that was left out because it was not finite does not count.
Integers that are summed modulo 2 ** b take b bits per value, whatever encoded before them. The
keys and shares of secure aggregation are not counted.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Broadcasts, Encodes, Integers, Personal, tree, wire
from fedjax_mem.engine import Simulation, table_bytes
from fedjax_mem.stages.compress import dense_size, total_bytes

# (least, most); None: unknown.
Range = tuple[int, int] | None
NOTHING = (0, 0)
_NAMES = ('bytes_up', 'bytes_down', 'bytes_more_down')
HIGH = '_high'
# A byte count is two metrics, its high and its low digits.
_PARTS = tuple(f'/{name}{part}' for name in _NAMES for part in (HIGH, '_low'))
_RARELY = 3  # expected participations of a client below which error feedback is of little use


class Traffic:
  """Counts the bytes of rounds."""

  def __init__(self, sim: Simulation):
    """Looks up how large the messages of a simulation are."""
    last = list(sim.setting.specs.values())[-1]
    params = sim.params
    for _, _, fact in sim.setting.layers.having(Personal):
      params = fact.sent(params)
    self._up, self._down = dense_size(last.update, last.aux), dense_size(params)
    self._beside = self._down * sum(x.copies for _, _, x in sim.setting.layers.having(Broadcasts))
    bits = [x.bits for _, _, x in sim.setting.layers.having(Integers)]
    self._modular, self._unknown = bool(bits), bool(sim.setting.layers.silent)
    if bits:
      values, beside = tree.size(last.update), tree.size(last.aux)
      part = jax.ShapeDtypeStruct((values,), jnp.int32)
      size = wire.OVERHEAD + wire.fixed_size(wire.Levels(part, bits[-1]))
      self._up = size + (wire.PART + 4 * beside if beside else 0)

  @staticmethod
  def counts(name: str) -> bool:
    """Returns whether a metric is one of the two parts of a byte count; `records` joins them."""
    return name.endswith(_PARTS)

  def planned(self, noted: Mapping[str, Range]) -> tuple[Range, Range]:
    """Returns (least, most) bytes that one client sends, and that it is sent; None: unknown.

    Args:
      noted: byte counts of the layers, as `engine.outline.noted` finds them.
    """
    up, down = _joined(noted, 'bytes_up'), _joined(noted, 'bytes_down')
    more = _joined(noted, 'bytes_more_down')
    if up == NOTHING or self._modular:
      up = self._up, self._up
    down = (self._down, self._down) if down == NOTHING else down
    if down is not None and more is not None:
      down = down[0] + self._beside + more[0], down[1] + self._beside + more[1]
    return (None if self._unknown else up), (None if more is None else down)

  def records(self, rows: Mapping[str, np.ndarray]) -> list[dict[str, int]]:
    """Returns the exact `bytes_up` (if known) and `bytes_down` of each round."""
    up, down = total_bytes(rows, 'bytes_up'), total_bytes(rows, 'bytes_down')
    more = total_bytes(rows, 'bytes_more_down')
    if up is None or self._modular:
      up = self._up * rows['clients'].astype(np.int64)
    down = (self._down if down is None else down) + self._beside
    down = down * rows['selected'].astype(np.int64)
    down = down if more is None else down + more
    made = [{'bytes_up': int(u), 'bytes_down': int(d)} for u, d in zip(up, down, strict=True)]
    if self._unknown:
      for record in made:
        del record['bytes_up']
    return made


def _joined(noted: Mapping[str, Range], name: str) -> Range:
  """Returns the range of a byte count of all layers together; `NOTHING`: no layer has it."""
  parts = [x for k, x in noted.items() if k.endswith(f'/{name}')]
  known = [x for x in parts if x is not None]
  if len(known) < len(parts):
    return None
  return sum(x[0] for x in known), sum(x[1] for x in known)


def notes(sim: Simulation, rounds: int) -> list[str]:
  """Returns notes to the user about the bytes of a run, one line each."""
  return [*_unknown(sim), *_forgotten(sim, rounds)]


def _unknown(sim: Simulation) -> list[str]:
  """Returns a note that names the layers with unknown message sizes, if there are any."""
  who = ' and '.join(f'the {side} side of {x.name!r}' for x, side in sim.setting.layers.silent)
  return [f'bytes up are unknown: {who} states nothing of what it does to messages'] if who else []


def _forgotten(sim: Simulation, rounds: int) -> list[str]:
  """Returns a note on each layer with error feedback, if clients rarely take part again."""
  sampling = sim.setting.layers.draws
  times = rounds * sampling.expected / sampling.population
  if times >= _RARELY:
    return []
  sizes = table_bytes(sim.setting, sim.params, sim.population)
  return [
    f'a client takes part about {times:.2g} times in {rounds} rounds, so that most of what '
    f'{layer.name!r} remembers of its update is never sent; its memory takes '
    f'{sizes[layer.name] / 1e6:,.1f} MB for {sampling.population:,} clients'
    for layer in sim.setting.layers
    if layer.fact(Encodes) is not None and sizes[layer.name]
  ]


def sent(record: Mapping[str, Any]) -> int:
  """Returns the bytes of a record, up and down together."""
  total: int = record.get('bytes_up', 0) + record.get('bytes_down', 0)
  return total
