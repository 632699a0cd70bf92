"""PRNG keys: each is derived from its use, (root, round, layer, role, client); none is stored.

There are two roots. The run's seed is public: it stands in reports and in configurations. The
secret root is that of noise under a claim of privacy, and of a draw whose randomness the claim
relies on (amplification by sampling): who knows it can subtract the noise and name the cohorts.

So resuming costs O(1), and neither the order of clients, nor chunking, nor the number of devices
can change a draw. The role is folded in before the client's id, since `fold_in(key, i)` equals
`split(key, n)[i]`: a stage that splits its key could otherwise get the key of a client. A layer
enters by the checksum of its name, not by its position, so that adding a layer changes no other
layer's draws.

No flag of JAX changes a draw: keys name their generator and draws their dtype, and what a flag
alone decides is `fixed` while programs are made and run.

JAX's generators are not cryptographic: masks and noise drawn from them simulate a protocol.
"""

import contextlib
import functools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.core.generator import GENERATOR, seed_words

ROLES = ('round', 'client', 'server', 'cohort', 'select', 'init', 'client_init')


def seed_key(seed: jax.typing.ArrayLike) -> jax.Array:
  """Returns the root key of a run; `seed` is an integer in [0, 2**32)."""
  if isinstance(seed, int) and 0 <= seed < 1 << 32:  # no program has to be compiled for it
    return root_key(np.array([0, seed], np.uint32))
  # Not `jax.random.key`, which adds `jax_random_seed_offset` to the seed.
  key: jax.Array = jax.random.wrap_key_data(seed_words(jnp.asarray(seed)), impl=GENERATOR)
  return key


def like() -> jax.ShapeDtypeStruct:
  """Returns the shape of a key, for `jax.eval_shape`: to make a key would compile a program."""
  shape: jax.ShapeDtypeStruct = jax.eval_shape(lambda: seed_key(0))
  return shape


@contextlib.contextmanager
def fixed() -> Iterator[None]:
  """Fixes which words a key gives, whatever the flags of the process; also a decorator.

  `jax_threefry_partitionable` gives other words of the same key, and `jax_default_prng_impl`
  another generator to code that makes keys without naming one.
  """
  with jax.threefry_partitionable(True), jax.default_prng_impl('threefry2x32'):
    yield


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Returns `jax.jit(function, **options)`, traced, compiled and run with `fixed` draws."""
  compiled = jax.jit(function, **options)

  @functools.wraps(compiled)
  def call(*arguments: Any, **named: Any) -> Any:
    with fixed():
      return compiled(*arguments, **named)

  return call


def fresh_root() -> np.ndarray:
  """Returns a new secret root, uint32 [2]: 64 bits from the operating system."""
  return np.frombuffer(os.urandom(8), np.uint32).copy()


def open_root(seed: jax.typing.ArrayLike) -> jax.Array:
  """Returns the root, uint32 [2], whose key is that of the seed: it is no secret.

  >>> bool(root_key(open_root(7)) == seed_key(7))
  True
  """
  return jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])


def root_key(root: jax.typing.ArrayLike) -> jax.Array:
  """Returns the key of a root, uint32 [2]."""
  held = isinstance(root, np.ndarray)  # `jnp.asarray` would compile a program for it
  words = jax.device_put(np.array(root, np.uint32)) if held else jnp.asarray(root, jnp.uint32)
  key: jax.Array = jax.random.wrap_key_data(words, impl=GENERATOR)
  return key


def layer_key(root: jax.Array, round: jax.typing.ArrayLike, name: str) -> jax.Array:
  """Returns the key of the layer `name` in a round, parent of the keys of all its roles."""
  return jax.random.fold_in(jax.random.fold_in(root, round), zlib.crc32(name.encode()))


def parents(root: jax.Array, round: jax.typing.ArrayLike, names: Sequence[str]) -> jax.Array:
  """Returns `role_key(layer_key(root, round, name), role)` of every name and role, [L, ROLES].

  For all of them at once: the compiler makes a kernel of every derivation, and takes its time.
  """
  crcs = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
  fold = jax.random.fold_in
  layers = jax.vmap(fold, (None, 0))(fold(root, round), crcs)
  roles = np.arange(len(ROLES), dtype=np.uint32)
  made: jax.Array = jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(layers, roles)
  return made


def role_key(layer: jax.Array, role: str, client: jax.typing.ArrayLike | None = None) -> jax.Array:
  """Returns the key of one role in a layer, or of one client in that role.

  Args:
    layer: a key from `layer_key`.
    role: one of 'round', 'client', 'server', 'cohort', 'select', 'init' and 'client_init'. A role
      has either one key or one key for each client, never both: a key from which others are derived
      is not used for draws.
    client: id of the client, for a role that every client plays.
  """
  validate.one_of(ROLES, role=role)
  key = jax.random.fold_in(layer, ROLES.index(role))
  return key if client is None else jax.random.fold_in(key, client)
