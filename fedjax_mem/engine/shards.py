"""Parameters divided over the devices of a group, by rules on their paths.

A rule is (regular expression, dimension): a parameter whose path it is found in, such as
'block_0/attention/qkv/kernel', is divided along that dimension over the axis `model` of the mesh.
The first rule that is found in a path counts, as in T5X and flax (`match_partition_rules`); a
parameter of no rule is whole on every device. What has the path and the shape of a parameter
elsewhere in a state, such as moments of an optimizer or residuals of clients, is divided like it.

At rest a state is divided. In a round local training, evaluation and the server's step are computed
of divided parameters. Between these, from the end of local training on, every device of a group
computes the same of whole updates (`mesh.undivided`): clip norms, codes, noise and sums are those
of one device, to the bit. So a device holds, for the time of a round, a whole message and the whole
sum of messages.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Layer, Member, Metrics, State, Tree
from fedjax_mem.engine import walk
from fedjax_mem.engine.cast import Cast
from fedjax_mem.engine.mesh import AXIS, MODEL, undivided
from fedjax_mem.engine.setting import Setting

# (regular expression, dimension, or what is along each dimension)
Rule = tuple[str, int | tuple[str | None, ...]]


def checked(rules: Any, name: str = 'rules') -> tuple[Rule, ...]:
  """Returns rules as tuples.

  Args:
    rules: a sequence of pairs (regular expression, where). `where` is a dimension of the parameter,
      from 0, or from -1 backwards; or, as in a `PartitionSpec`, a list of its dimensions with
      'model' for the one that is divided and None or '' for others; () divides none.
    name: in messages.

  Raises:
    ValueError: they are not of this form.
  """
  if isinstance(rules, str) or not isinstance(rules, Sequence):
    raise ValueError(f'{name} must be a list of [path, dimension], got {rules!r}.')
  return tuple(_rule(f'{name}[{i}]', rule) for i, rule in enumerate(rules))


def _rule(name: str, rule: Any) -> Rule:
  """Returns a rule as a tuple."""
  pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
  if not pair or not isinstance(rule[0], str):
    raise ValueError(f"{name} must be ['regular expression', dimension], got {rule!r}.")
  path, where = rule
  try:
    re.compile(path)
  except re.error as error:
    raise ValueError(f'{name} must have a regular expression, got {path!r} ({error}).') from error
  if isinstance(where, int) and not isinstance(where, bool):
    return path, where
  if isinstance(where, Sequence) and not isinstance(where, str):
    along = tuple(x or None for x in where)
    if all(x in (None, MODEL) for x in along) and along.count(MODEL) <= 1:
      return path, along
  raise ValueError(
    f"{name} must name a dimension, or list {MODEL!r} once among '', got {where!r} for {path!r}."
  )


def of_parameters(rules: tuple[Rule, ...], params: Tree, devices: int) -> Tree:
  """Returns how each parameter is divided, a tree of `PartitionSpec`.

  Args:
    rules: from `checked`.
    params: arrays or shapes.
    devices: over which the parameters are divided.

  Raises:
    ValueError: no rules, a rule that is found in no path, or a dimension that a parameter does not
      have or that is no multiple of the devices.
  """
  if not rules:
    raise ValueError(
      f'rules must say how parameters are divided over model_devices = {devices}, got none '
      '(Model.rules are those of a model that ships some).'
    )
  paths = [path for path, _ in _leaves(params)]
  for pattern, where in rules:
    if not any(re.search(pattern, path) for path in paths):
      raise ValueError(
        f'rules must each be found in the path of a parameter, got {(pattern, where)!r} for the '
        f'paths {paths[:8]!r}{" …" if len(paths) > 8 else ""}.'
      )
  made = [_spec(rules, path, x.shape, devices) for path, x in _leaves(params)]
  return jax.tree.unflatten(jax.tree.structure(params), made)


def _leaves(values: Tree) -> list[tuple[str, Any]]:
  """Returns (path, leaf) of a tree."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), x)
    for path, x in jax.tree_util.tree_flatten_with_path(values)[0]
  ]


def _spec(
  rules: tuple[Rule, ...], path: str, shape: tuple[int, ...], devices: int
) -> PartitionSpec:
  """Returns how a parameter of this path and shape is divided."""
  found = next((rule for rule in rules if re.search(rule[0], path)), None)
  if found is None:
    return PartitionSpec()
  where = found[1]
  if isinstance(where, tuple):
    if len(where) > len(shape):
      raise ValueError(f'rules must fit their parameters, got {found!r} for {path!r} {shape!r}.')
    if MODEL not in where:
      return PartitionSpec()
    where = where.index(MODEL)
  if not -len(shape) <= where < len(shape):
    raise ValueError(
      f'rules must name a dimension that the parameter has, got {found!r} for {path!r} {shape!r}.'
    )
  where %= len(shape)
  if shape[where] % devices:
    raise ValueError(
      f'rules must name a dimension that is a multiple of model_devices = {devices}, got dimension '
      f'{where} of {path!r}, {shape[where]} of {shape!r}, by {found!r}.'
    )
  return PartitionSpec(*[None] * where, MODEL)


def of_state(specs: Tree, params: Tree, state: State) -> State:
  """Returns how each array of a state is divided over the axis `model`, a tree of its structure.

  Args:
    specs: from `of_parameters`.
    params: shapes of the parameters.
    state: shapes of the state.
  """
  known = [
    (path, x.shape, spec)
    for (path, x), spec in zip(
      _leaves(params), jax.tree.leaves(specs, is_leaf=_is_spec), strict=True
    )
  ]
  known.sort(key=lambda x: -len(x[0]))  # the longest path that fits counts

  def like(values: Tree, axes: int) -> Tree:
    def one(path: str, shape: tuple[int, ...]) -> PartitionSpec:
      for name, wanted, spec in known:
        if shape[axes:] == wanted and f'/{path}'.endswith(f'/{name}' if name else ''):
          return PartitionSpec(*[None] * axes, *spec) if MODEL in spec else PartitionSpec()
      return PartitionSpec()

    made = [one(path, x.shape) for path, x in _leaves(values)]
    return jax.tree.unflatten(jax.tree.structure(values), made)

  whole: Any = PartitionSpec()
  return State(
    whole,
    specs,
    {name: like(x, 1) for name, x in state.clients.items()},
    {name: like(x, 0) for name, x in state.servers.items()},
  )


def _is_spec(x: Any) -> bool:
  return isinstance(x, PartitionSpec)


def placed(specs: Tree, mesh: Any, first: str | None = None) -> Tree:
  """Returns the shardings of such specs; `first` is the axis that the leading dimension is over."""

  def one(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(first, *spec[1:]) if first else spec)

  return jax.tree.map(one, specs, is_leaf=_is_spec)


def kept(values: Tree, specs: Tree, mesh: Mesh) -> Tree:
  """Returns the values, within a compiled program, divided as `specs` say; None: as they are.

  In what every device computes whole they stay whole.
  """
  around = jax.sharding.get_abstract_mesh()
  if specs is None or MODEL in around.manual_axes:
    return values
  where = mesh if around.empty else around
  return jax.lax.with_sharding_constraint(values, placed(specs, where))


def shardings(specs: State, divided: bool, mesh: Mesh) -> State:
  """Returns the shardings of a state; tables are divided over `clients` as well if `divided`."""
  first = AXIS if divided and mesh.shape[AXIS] > 1 else None
  made: State = placed(specs, mesh)
  return made._replace(clients=placed(specs.clients, mesh, first))


def client_pass(
  setting: Setting,
  group: tuple[Layer, ...],
  cast: Cast,
  client: Member,
  value: Any,
  old: dict[str, Tree],
) -> tuple[Any, dict[str, Tree], Metrics, jax.Array]:
  """Returns what `walk.client_pass` does; where parameters are divided, only training is.

  All other sides get whole messages, and compute the same on each device of a group.

  Args:
    setting: of the run.
    group: the layers whose client sides run.
    cast: of the round.
    client: the client.
    value: what enters the first of these sides.
    old: for each layer of the group, the client's state.
  """
  if setting.shards is None:
    return walk.client_pass(setting.layers, group, cast, setting.specs, client, value, old)
  new: dict[str, Tree] = {}
  metrics: Metrics = {}
  ok = jnp.bool_(True)
  for trains, part in walk.parts(group):

    def side(cast: Cast, *given: Any, part: tuple[Layer, ...] = part) -> Any:
      return walk.client_pass(setting.layers, part, cast, setting.specs, *given)

    if trains:
      params = kept(value.params, setting.shards.params, setting.layout.mesh)
      run, told, value = side, cast, value._replace(params=params)
    else:
      run, told = undivided(side), cast.bare()
    value, rows, noted, fine = run(told, client, value, {x.name: old[x.name] for x in part})
    new |= rows
    metrics |= noted
    ok &= fine
  return value, new, metrics, ok
