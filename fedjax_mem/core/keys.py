"""PRNG keys: each is derived from its use, (seed, round, layer, role, client); none is stored.

So resuming costs O(1), and neither the order of clients, nor chunking, nor the number of devices
can change a draw. The role is folded in before the client's id, since `fold_in(key, i)` equals
`split(key, n)[i]`: a stage that splits its key could otherwise get the key of a client. A layer
enters by the checksum of its name, not by its position, so that adding a layer changes no other
layer's draws.

JAX's generators are not cryptographic: masks and noise drawn from them simulate a protocol.
"""

import zlib

import jax

from fedjax_mem.core import validate

_ROLES = ('round', 'client', 'server', 'cohort', 'select', 'init', 'client_init')


def seed_key(seed: jax.typing.ArrayLike) -> jax.Array:
  """Returns the root key of a run; `seed` is an integer in [0, 2**32)."""
  return jax.random.key(seed)


def layer_key(root: jax.Array, round: jax.typing.ArrayLike, name: str) -> jax.Array:
  """Returns the key of the layer `name` in a round, parent of the keys of all its roles."""
  return jax.random.fold_in(jax.random.fold_in(root, round), zlib.crc32(name.encode()))


def role_key(layer: jax.Array, role: str, client: jax.typing.ArrayLike | None = None) -> jax.Array:
  """Returns the key of one role in a layer, or of one client in that role.

  Args:
    layer: a key from `layer_key`.
    role: one of 'round', 'client', 'server', 'cohort', 'select', 'init' and 'client_init'. A role
      has either one key or one key for each client, never both: a key from which others are derived
      is not used for draws.
    client: id of the client, for a role that every client plays.
  """
  validate.one_of(_ROLES, role=role)
  key = jax.random.fold_in(layer, _ROLES.index(role))
  return key if client is None else jax.random.fold_in(key, client)
