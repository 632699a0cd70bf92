"""What a round sends, in bytes: up from the clients, down to them, in every run.

Layers that encode report their own bytes; where none does, each client that arrives sends its
update, and each client that is selected is sent the parameters, as they are. Headers and checksums
are counted (`stages/compress/wire.py`). An update that was left out since it was not finite is not.
Integers that are summed modulo 2 ** b take b bits a value, whatever encoded before them. What the
parties of secure aggregation send besides (keys, shares) is not counted.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Encodes, Integers, tree, wire
from fedjax_mem.engine import Simulation, table_bytes
from fedjax_mem.stages.compress import dense_size, total_bytes

_NAMES = ('bytes_up', 'bytes_down', 'bytes_more_down')
_HALVES = tuple(f'/{name}_{half}' for name in _NAMES for half in ('high', 'low'))
_RARELY = 3  # times in a run that a client has to take part for its memory to be of use


class Traffic:
  """Counts the bytes of rounds."""

  def __init__(self, sim: Simulation):
    """Looks up how large the messages of a simulation are."""
    last = list(sim.setting.specs.values())[-1]
    self._up, self._down = dense_size(last.update, last.aux), dense_size(sim.params)
    bits = [x.bits for _, _, x in sim.setting.layers.having(Integers)]
    self._modular, self._unknown = bool(bits), bool(sim.setting.layers.silent)
    if bits:
      values, beside = tree.size(last.update), tree.size(last.aux)
      part = jax.ShapeDtypeStruct((values,), jnp.int32)
      size = wire.OVERHEAD + wire.fixed_size(wire.Levels(part, bits[-1]))
      self._up = size + (wire.PART + 4 * beside if beside else 0)

  @staticmethod
  def counts(name: str) -> bool:
    """Returns whether a metric is half of a number of bytes, which `records` puts together."""
    return name.endswith(_HALVES)

  def records(self, rows: Mapping[str, np.ndarray]) -> list[dict[str, int]]:
    """Returns `bytes_up` (if they are known) and `bytes_down` of each round, exactly."""
    up, down = total_bytes(rows, 'bytes_up'), total_bytes(rows, 'bytes_down')
    more = total_bytes(rows, 'bytes_more_down')
    if up is None or self._modular:
      up = self._up * rows['clients'].astype(np.int64)
    down = (self._down if down is None else down) * rows['selected'].astype(np.int64)
    down = down if more is None else down + more
    made = [{'bytes_up': int(u), 'bytes_down': int(d)} for u, d in zip(up, down, strict=True)]
    if self._unknown:
      for record in made:
        del record['bytes_up']
    return made


def notes(sim: Simulation, rounds: int) -> list[str]:
  """Returns what a user is to know of the bytes of a run, one line each."""
  return [*_unknown(sim), *_forgotten(sim, rounds)]


def _unknown(sim: Simulation) -> list[str]:
  """Returns who leaves open what clients send."""
  who = ' and '.join(f'the {side} side of {x.name!r}' for x, side in sim.setting.layers.silent)
  return [f'bytes up are unknown: {who} states nothing of what it does to messages'] if who else []


def _forgotten(sim: Simulation, rounds: int) -> list[str]:
  """Returns what becomes of error feedback where clients rarely return."""
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
  """Returns the bytes of a record, up and down."""
  total: int = record.get('bytes_up', 0) + record.get('bytes_down', 0)
  return total
