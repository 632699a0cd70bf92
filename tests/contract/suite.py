"""What the contract suite runs: registered stages, test-only layers, and those of `--stage`."""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
import pytest
from reference import stages, tiny

import fedjax_mem.optim
import fedjax_mem.stages
from fedjax_mem.core import (
  Draws,
  Integers,
  Layer,
  Masks,
  Noises,
  Prepares,
  Trains,
  Weighs,
  Weighted,
  Withholds,
  compose,
)
from fedjax_mem.stages.algorithm import Sgd, fedsgd
from fedjax_mem.stages.masks import integers, mask
from fedjax_mem.stages.weigh import by_examples, equal

_FOLDER = Path(__file__).parents[2] / 'scripts' / 'examples'
# What the suite hands to the arguments of these names that have no default.
ARGUMENTS: dict[str, Any] = {
  'loss': tiny.loss,
  'num_clients': tiny.N,
  'cohort_size': tiny.C,
  'rate': 0.4,
  'learning_rate': 0.2,
  'batch_size': 4,
  'server_optimizer': optax.sgd(1.0),
  'epochs': 1,
  'steps': 2,
  'total_weight': float(tiny.N),
  'cap': 5.0,
  'expected': 5,
  'capacity': 8,
  'num_classes': tiny.CLASSES,
  'attackers': 4,
  'byzantine': 0,
  'bits': 12,
  'fraction': 0.3,
  'bound': 0.5,
  'multiplier': 0.3,
  'l1_clip_norm': 1.0,
  'l2_clip_norm': 0.5,
  'noise_multiplier': 0.3,
  'restart': 1,
  'separation': 1,
  'rounds': 8,
  'clients': tiny.C,
  'dimension': (tiny.FEATURES + 1) * tiny.CLASSES,
  'shares': 2,
  'value_range': 4.0,
}

# Every name in a registry of a room needs a line here: what is handed to it besides `ARGUMENTS`.
IN_TREE: dict[str, dict[str, dict[str, Any]]] = {
  'SAMPLERS': {
    'uniform': {},
    'poisson': {'capacity': 8},
    'round_robin': {},
    'min_separation': {},
    'importance': {'capacity': 8},
    'power_of_choice': {},
    'oort': {},
    'contribution': {'validation': tiny.DATA[0], 'method': 'leave_one_out'},
  },
  'TRACES': {'diurnal': {}, 'markov': {}},
  'ALGORITHMS': {
    'fedavg': {'epochs': 2, 'optimizer': functools.partial(optax.sgd, momentum=0.9)},
    'fedsgd': {},
    'dp_sgd': {},
    'fedprox': {'epochs': 2, 'mu': 0.5, 'partial_work': 0.5},
    'scaffold': {'optimizer': Sgd(0.9)},
    'fednova': {'mu': 0.5, 'optimizer': Sgd(0.9)},
    'feddyn': {'alpha': 0.5},
    'mime': {},
    'mime_lite': {},
  },
  'PRIVACY': {
    'central': {},
    'laplace': {},
    'adaptive_clip': {},
    'local': {},
    'local_laplace': {},
    'local_discrete': {},
    'distributed': {},
    'tree': {},
    'matrix_factorization': {},
  },
  'COMPRESSION': {
    'top_k': {'fraction': 0.3},
    'random_k': {'fraction': 0.3},
    'quantize': {'bits': 4, 'block': 8},
    'sign': {},
    'ternary': {},
    'rotate': {'block': 16},
    'drive': {'block': 16},
    'eden': {'block': 16},
    'low_rank': {'rank': 1, 'warm': 'shared'},
    'power_sgd': {'rank': 1},
    'error_feedback': {'codec': {'use': 'top_k', 'fraction': 0.3}},
    'chain': {'first': {'use': 'random_k', 'fraction': 0.5}, 'second': 'quantize'},
    'downlink': {},
  },
  'AGGREGATION': {
    'median': {},
    'trimmed_mean': {'byzantine': 1},
    'krum': {'byzantine': 1},
    'multi_krum': {},
    'bulyan': {},
    'geometric_median': {},
    'centered_clipping': {'radius': 0.2},
    'norm_bounding': {},
    'dnc': {'byzantine': 1, 'sample': 9},
    'signguard': {'fraction': 0.5},
    'bucketing': {'size': 2},
    'nnm': {'byzantine': 1},
  },
  'ATTACKS': {
    'label_flip': {},
    'backdoor': {},
    'sign_flip': {},
    'gaussian': {},
    'scaling': {},
    'alie': {'z': 1.5},
    'ipm': {},
    'min_max': {},
    'min_sum': {},
    'mimic': {'seed': 3, 'num_clients': 10},
  },
  'SECURE': {'integers': {'dimension': 18}, 'mask': {'weight_range': 64.0}},
  'WEIGHINGS': {
    'examples': {},
    'equal': {},
    'capped': {},
    'given': {'weights': [1 + 0.1 * i for i in range(tiny.N)]},
  },
  'SERVER_OPTIMIZERS': {'sgd': {}, 'fedavgm': {}, 'fedadagrad': {}, 'fedadam': {}, 'fedyogi': {}},
}
# Methods from outside of the tree, under the contract as well.
EXAMPLES = ('fedsam:fedsam', 'meamed:meamed', 'stratified:stratified', 'one_bit:one_bit')
TEST_ONLY = (
  stages.scaffold,
  stages.top_k,
  stages.secure_sum,
  stages.median,
  stages.krum,
  stages.label_flip,
  stages.importance,
  stages.adaptive_clip,
)


# What each file of the suite is asked about by an option of its own.
KINDS = {
  'test_contract.py': '--stage',
  'test_promises.py': '--stage',
  'test_mechanisms.py': '--mechanism',
  'test_codecs.py': '--codec',
}


class Case(NamedTuple):
  """One factory under the contract, and the arguments it is called with."""

  name: str
  factory: Callable
  arguments: dict[str, Any]

  @property
  def marks(self) -> tuple:
    """The default tier has the first entry of each registry, and what an option names."""
    other = self.name.startswith(('test', *IN_TREE)) and self.name not in FIRST
    return (pytest.mark.slow,) * other

  def make(self, **changed: Any) -> Any:
    """Returns what the factory makes, with some arguments changed."""
    return self.factory(**(self.arguments | changed))


def registries() -> dict[str, dict[str, Callable]]:
  """Returns every registry (a dict in capitals of a room's `__init__`) of stages and optim."""
  rooms = [fedjax_mem.optim] + [
    importlib.import_module(f'fedjax_mem.stages.{found.name}')
    for found in pkgutil.iter_modules(fedjax_mem.stages.__path__)
  ]
  return {
    name: value
    for room in rooms
    for name, value in vars(room).items()
    if name.isupper() and isinstance(value, dict)
  }


def case(name: str, factory: Callable, given: dict[str, Any] | None = None) -> Case:
  """Returns the case of a factory, its required arguments filled in by name.

  Raises:
    pytest.UsageError: a required argument that the suite does not know.
  """
  arguments = dict(given or {})
  for parameter in inspect.signature(factory).parameters.values():
    needed = parameter.default is parameter.empty and parameter.kind not in (
      parameter.VAR_POSITIONAL,
      parameter.VAR_KEYWORD,
    )
    if needed and parameter.name not in arguments:
      if parameter.name not in ARGUMENTS:
        raise pytest.UsageError(
          f'the contract suite does not know what to give to the argument {parameter.name!r} of '
          f'{name}; wrap the factory in one without it (known: {sorted(ARGUMENTS)}).'
        )
      arguments[parameter.name] = ARGUMENTS[parameter.name]
  return Case(name, factory, arguments)


def cases(chosen: list[str]) -> list[Case]:
  """Returns the cases: those of `--stage package.module:factory`, or all of the tree."""
  if chosen:
    return [case(name, _load(name)) for name in chosen]
  found = registries()
  tree = [
    case(f'{registry}-{name}', found[registry][name], given)
    for registry, entries in IN_TREE.items()
    for name, given in entries.items()
    if name in found.get(registry, {})
  ]
  return tree + test_only() + [case(f'test-{name}', example(name)) for name in EXAMPLES]


def example(name: str) -> Callable:
  """Returns a factory of `scripts/examples`, which a user has on the path."""
  if str(_FOLDER) not in sys.path:
    sys.path.append(str(_FOLDER))
  return _load(name)


def tree_case(registry: str, name: str) -> Case:
  """Returns the case of one entry of a registry."""
  return case(f'{registry}-{name}', registries()[registry][name], IN_TREE[registry][name])


def test_only() -> list[Case]:
  """Returns the cases of the layers that only the tests use."""
  return [case(f'test-{factory.__name__}', factory) for factory in TEST_ONLY]


test_only.__test__ = False  # type: ignore[attr-defined]


def _load(name: str) -> Callable:
  module, _, attribute = name.partition(':')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise pytest.UsageError(
      f'--stage must be package.module:factory, got {name!r}: {error}.'
    ) from error


def is_optimizer(made: Any) -> bool:
  """Returns whether a factory made a server optimizer and not layers."""
  return isinstance(made, optax.GradientTransformation)


def dress(made: Any, algorithm: Layer | None = None) -> tuple[Layer, ...]:
  """Returns a whole round around what a factory made; nothing else in it is random.

  `algorithm` trains, where the factory did not make what does; None: one gradient a client.
  """
  algorithm = tiny.algorithm() if algorithm is None else algorithm
  if is_optimizer(made):
    return compose(fedsgd(tiny.loss, batch_size=16, server_optimizer=made), tiny.rota(), equal())
  own = (made,) if isinstance(made, Layer) else tuple(made)
  if own[0].fact(Masks) is not None:
    own = (integers(4.0, clients=tiny.C), *own)
  if own[-1].fact(Withholds) is not None:  # shares of noise
    own = (*own, mask(clients=tiny.C, bits=own[-1].fact(Integers).bits, degree=2))
  noisy = any(x.fact(Noises) is not None for x in own)
  weigh = equal(float(tiny.C)) if noisy else equal()  # what is private has a public divisor
  if any(x.fact(Trains) is not None for x in own):
    return compose(own, tiny.rota(), weigh)
  before = [x for x in own if x.fact(Prepares) is not None]
  after = [x for x in own if x.fact(Prepares) is None]
  if any(x.fact(Weighs) is not None for x in own):
    return compose(*before, algorithm, tiny.rota(), *after)
  if any(x.select is not None for x in own):
    early = [x for x in after if x.fact(Weighted) is None]
    late = [x for x in after if x.fact(Weighted) is not None]
    if not any(x.fact(Draws) is not None for x in own):
      early = [tiny.rota(), *early]
    return compose(*before, algorithm, *early, by_examples(), *late)
  return compose(*before, algorithm, tiny.rota(), weigh, *after)


# Whose rounds can be pooled; they are under contract in those modes as well.
POOLS = ('ALGORITHMS-fedavg', 'ALGORITHMS-fedsgd', 'WEIGHINGS')


FIRST = tuple(f'{registry}-{next(iter(given))}' for registry, given in IN_TREE.items())


def modes(case: Case) -> list:
  """Returns the execution modes besides `vmap`: one of the default tier, and the others."""
  # 'chunk on devices' is also what clients side by side on devices do, and chunks on one; 'loop on
  # devices' what a loop on one does, which the host's own loop is compared with as well.
  others = ['divided on devices', *(tiny.POOLED if case.name.startswith(POOLS) else ())]
  slow = [pytest.param(m, marks=pytest.mark.slow) for m in others]
  # On two devices it tells nothing that the others do not.
  many = pytest.param('loop on devices', marks=(pytest.mark.slow, pytest.mark.devices(3)))
  return ['chunk on devices', *slow, many]


_simulations: dict[tuple[str, str], Any] = {}
_runs: dict[tuple[str, str], Any] = {}


def simulation(case: Case, mode: str = 'vmap') -> Any:
  """Returns the case's simulation in an execution mode, compiled once for all tests."""
  if (case.name, mode) not in _simulations:
    _simulations[case.name, mode] = tiny.build(dress(case.make()), mode)
  return _simulations[case.name, mode]


def run(case: Case, mode: str = 'vmap') -> Any:
  """Returns (state, metrics) of the case after `tiny.ROUNDS` rounds, computed once."""
  if (case.name, mode) not in _runs:
    _runs[case.name, mode] = tiny.execute(simulation(case, mode))
  return _runs[case.name, mode]


def draws(round_fn: Callable, *args: Any) -> bool:
  """Returns whether a round draws random bits at all."""
  return 'random_bits' in str(jax.make_jaxpr(round_fn)(*args))
