"""What a side of a layer may know besides its value and its state."""

from typing import Any, NamedTuple

import jax

from fedjax_mem.core.tree import Tree


class Context(NamedTuple):
  """What a side of a layer may know besides its value and its state.

  Attributes:
    key: PRNG key of (root, round, layer, role, client): no other side and no other client has it.
      The root is the run's seed, or the secret root (`Round.secret`).
    round_key: PRNG key of (seed, round, layer), the same for all clients and the server.
    round: int32, the round's number, from 0.
    client: `Member` of scalars on a client side, else None.
    cohort: `Member` of arrays [C]; None on select sides. Client sides do not see who will arrive,
      and noise on the sum hides the cohort (`engine/hiding.py`).
    params: the server's parameters at the start of the round.
    server_state: the server state of the same layer at the start of the round, after its select
      side. With `params`, it is all that is broadcast to clients.
    spec: shapes and dtypes of what this layer's client side receives, hence of what its server
      side must give back. In a round it is None for the layers up to the algorithm.
    table: on a select side that looks at data, this layer's client states [N, ...]; else None.
    bound: on a side that states `Noises`, the `Bound` of what one client can change in what
      it receives; else None.
  """

  key: jax.Array
  round_key: jax.Array
  round: jax.Array
  client: Any
  cohort: Any
  params: Tree
  server_state: Tree
  spec: Any
  table: Any = None
  bound: Any = None
