"""The job: what the server says of a run to all clients, signed; and the plan that both make of it.

A job is one envelope of kind 'job' for everyone ('*'). It holds the configuration as TOML and what
is expected of every client's examples. From these the server and each client plan the same round.
"""

import dataclasses
import functools
import json
import secrets
import tomllib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem import engine
from fedjax_mem._version import __version__
from fedjax_mem.config.load import Config, config_from_dict, to_toml
from fedjax_mem.core import IncompatibleStages, Looks, Masks, Noises, Population, Round, Tree, tree
from fedjax_mem.deploy import messages, secure
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.form import Form
from fedjax_mem.engine import Layout, Setting

EVERYONE, KIND = '*', 'job'


class Job(NamedTuple):
  """What a client knows of a run.

  Attributes:
    run: id of the run.
    config: the experiment.
    expected: what examples must be.
    clients: names of the clients, by id.
  """

  run: str
  config: Config
  expected: Expected
  clients: tuple[str, ...]


def write(key: Ed25519PrivateKey, job: Job) -> bytes:
  """Returns the job as bytes, signed by the server's key."""
  body = {
    'version': __version__,
    'config': to_toml(job.config),
    'expected': job.expected.to_json(),
    'clients': job.clients,
  }
  turn = secrets.token_hex(16)
  header = messages.Header(job.run, -1, turn, KIND, messages.SERVER, EVERYONE)
  return messages.seal(key, header, json.dumps(body).encode())


def read(data: bytes, server: bytes) -> Job:
  """Returns the job in a server's bytes. Nothing is built of it yet.

  Args:
    data: the bytes.
    server: the server's public key, 32 bytes.

  Raises:
    Refused: it is not signed by the server, or is of another version of the package.
  """
  try:
    envelope = messages.parse(data)
    messages.verify(envelope, server)
    header = envelope.header
    if (header.kind, header.sender, header.to) != (KIND, messages.SERVER, EVERYONE):
      raise messages.Unfit('malformed', f'a message of kind {header.kind!r}')
  except messages.Unfit as error:
    raise messages.Refused(
      f"the configuration must be signed by the server's key of this kit, got one that is not "
      f'({error}): get the kit of this deployment, or ask who sent the job.'
    ) from None
  try:
    content = json.loads(envelope.body)
    version = content['version']
    if version != __version__:
      raise messages.Refused(
        f'both sides must run one version of fedjax_mem, got {version} on the server and '
        f'{__version__} here: install the same.'
      )
    config = config_from_dict(tomllib.loads(content['config']))
    expected = Expected.from_json(content['expected'])
    return Job(header.run, config, expected, tuple(map(str, content['clients'])))
  except messages.Refused:
    raise
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    words = ' '.join(str(error).split())
    raise messages.Refused(f'the configuration must be a valid one, got: {words}') from None


class Plan(NamedTuple):
  """The round of a deployment, as the server and every client run it.

  Attributes:
    setting: of the round; without the simulated masks, if it has some.
    form: how its messages are written.
    sealing: the integers that are masked; None: nothing is.
    spent: whether a round that was begun is used up, since what clients have sent, or the sum, was
      seen by a server that they do not trust.
  """

  setting: Setting
  form: Form
  sealing: secure.Sealing | None
  spent: bool


def looped(config: Config) -> Config:
  """Returns the experiment, to be run one client at a time on one device."""
  execution = dataclasses.replace(config.execution, mode='loop', chunk=None, devices=1)
  return dataclasses.replace(config, execution=execution)


def plan(
  layers: Round, params: Tree, expected: Expected, batch: dict[str, Any], preprocess: Any
) -> Plan:
  """Returns the plan of a round, checked.

  Args:
    layers: of the round.
    params: shapes of the parameters.
    expected: what examples are.
    batch: shapes of examples, name -> [n, ...].
    preprocess: function batch -> batch.

  Raises:
    IncompatibleStages: layers that do not work between processes.
  """
  masked = secure.bare(layers)
  layers = layers if masked is None else masked
  _check(layers)
  population = stand_in(expected, batch)
  layout = Layout(1, True, engine.make_mesh(1))
  setting = engine.make_setting(
    layers, params, population, expected.shape, layout, (preprocess,), pool=False
  )
  seed, root = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
  first = functools.partial(engine.first_state, setting)
  state = jax.eval_shape(first, params, population, seed, root)
  form = Form(setting, params, batch, state.servers)
  sealing = None if masked is None else secure.sealing(setting.layers, setting.specs)
  spent = sealing is not None or any(
    noise.trust == 'local' for _, _, noise in layers.having(Noises)
  )
  return Plan(setting, form, sealing, spent)


def stand_in(expected: Expected, batch: dict[str, Any]) -> Population:
  """Returns the shapes of a population of so many clients, whose examples are elsewhere."""
  shapes = tree.shapes(batch)
  rows: Any = jax.ShapeDtypeStruct((next(iter(shapes.values())).shape[0],), jnp.int32)
  each: Any = jax.ShapeDtypeStruct((expected.num_clients,), jnp.int32)
  return Population(shapes, rows, each, each)


def _check(layers: Round) -> None:
  """Raises `IncompatibleStages` for layers that need what no server of a deployment has."""
  for x in layers.selecting:
    looks = x.fact(Looks)
    if (looks is None or looks.at != 'nothing') and x.client is not None:
      raise IncompatibleStages(
        f'{x.name!r} selects clients by states that they keep to themselves: simulate it, or '
        'choose a sampler that looks at nothing, such as uniform.'
      )
  noises = [(x, noise) for x, _, noise in layers.having(Noises)]
  apart = bool(layers.having(Masks)) or any(noise.trust == 'local' for _, noise in noises)
  for x, noise in noises:
    if noise.mechanism.correlated and apart:
      raise IncompatibleStages(
        f'the noise of {x.name!r} depends on that of earlier rounds, and a round that is lost '
        'under masks or local noise is not run again: use independent noise, such as central.'
      )
