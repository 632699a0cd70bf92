"""Writes the table of combinations in docs/threat-model.md, from what the checks of a round say.

python scripts/threat_model.py            writes the table
python scripts/threat_model.py --check    exit code 1 if the page holds another

Each kind of protection is composed with each other method, in the place where a user would put it,
and planned by `fm.simulate`. A combination that is refused is listed with the words of the refusal.
"""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package that lies beside this script

import fedjax_mem as fm  # noqa: E402
from fedjax_mem.stages import (  # noqa: E402
  aggregate,
  algorithm,
  attack,
  compress,
  masks,
  privacy,
  select,
  weigh,
)

PAGE = HERE.parent / 'docs' / 'threat-model.md'
BEGIN, END = '<!-- combinations -->', '<!-- end combinations -->'
CLIENTS, COHORT, SIZE = 24, 6, 64
SEPARATION = CLIENTS // COHORT

Layers = tuple[fm.Layer, ...]


class Stack(NamedTuple):
  """The layers of a round, by their place.

  Attributes:
    draw: the layer that draws, and those beside it.
    train: the algorithm.
    weigh: the weighing.
    claim: clip, noise and masks.
    first: layers before the algorithm.
    filters: layers that leave clients out, after the draw.
    eligible: layers that leave clients out, before the draw.
    early: layers of messages before the claim's.
    late: layers of messages after the claim's.
  """

  draw: Layers
  train: Layers
  weigh: Layers
  claim: Layers
  first: Layers = ()
  filters: Layers = ()
  eligible: Layers = ()
  early: Layers = ()
  late: Layers = ()

  @property
  def layers(self) -> Layers:
    """All layers, in order."""
    selecting = (*self.eligible, *self.draw, *self.filters)
    around = (*self.weigh, *self.early, *self.claim, *self.late)
    return (*self.first, *self.train, *selecting, *around)


def loss(params, batch, key=None):
  """Returns squared distances, [B]."""
  del key
  return ((params['w'].sum() - batch['x']) ** 2) / 2


def several(*made) -> Layers:
  """Returns layers, each given by itself or in a tuple of several."""
  return tuple(fm.core.round.flattened(*made))


def fedavg() -> Layers:
  """Returns the algorithm of all stacks but that of DP-SGD."""
  return several(algorithm.fedavg(loss, learning_rate=0.1, batch_size=2))


def dp_sgd() -> Layers:
  """Returns DP-SGD in the client."""
  numbers = {'steps': 2, 'rate': 0.5, 'l2_clip_norm': 1.0, 'noise_multiplier': 1.0}
  return several(algorithm.dp_sgd(loss, learning_rate=0.1, batch_size=2, **numbers))


def poisson() -> Layers:
  """Returns the draw that amplifies central noise."""
  return several(select.poisson(CLIENTS, COHORT / CLIENTS))


def uniform() -> Layers:
  """Returns the draw of cohorts of fixed size."""
  return several(select.uniform(CLIENTS, COHORT))


def turns() -> Layers:
  """Returns the draw of clients in turn."""
  return several(select.round_robin(CLIENTS, COHORT))


def summed() -> Layers:
  """Returns the weighing with a fixed divisor."""
  return several(weigh.equal(float(COHORT)))


def alike() -> Layers:
  """Returns the weighing with the divisor that arrived."""
  return several(weigh.equal())


def noise_shares() -> Layers:
  """Returns shares of noise under a mask, with room for every client."""
  rooms = {'clients': CLIENTS, 'bits': 24}
  return several(
    privacy.distributed(1.0, 1.0, shares=4, dimension=SIZE, **rooms), masks.mask(**rooms)
  )


def masked() -> Layers:
  """Returns secure aggregation without noise."""
  return several(masks.integers(10.0, clients=CLIENTS, dimension=SIZE), masks.mask(clients=CLIENTS))


def central() -> Layers:
  """Returns Gaussian noise on the sum."""
  return several(privacy.central(1.0, 1.0))


def tree() -> Layers:
  """Returns noise that is correlated over rounds."""
  return several(privacy.tree(1.0, 1.0, restart=SEPARATION))


def local() -> Layers:
  """Returns noise that each client adds."""
  return several(privacy.local(1.0, 1.0))


CLAIMS: dict[str, Callable[[], Stack]] = {
  'central': lambda: Stack(poisson(), fedavg(), summed(), central()),
  'correlated': lambda: Stack(turns(), fedavg(), summed(), tree()),
  'local': lambda: Stack(uniform(), fedavg(), alike(), local()),
  'DP-SGD': lambda: Stack(uniform(), dp_sgd(), alike(), ()),
  'distributed': lambda: Stack(turns(), fedavg(), summed(), noise_shares()),
  'masks alone': lambda: Stack(uniform(), fedavg(), several(weigh.by_examples()), masked()),
}


def silent() -> fm.Layer:
  """Returns a layer that states nothing."""
  return fm.Layer('silent', client=fm.Stage(lambda ctx, message, state: (message, state, {})))


def late(*made) -> Callable[[Stack], Stack]:
  """Returns what puts layers after the claim's."""
  return lambda stack: stack._replace(late=several(*made))


def early(*made) -> Callable[[Stack], Stack]:
  """Returns what puts layers before the claim's."""
  return lambda stack: stack._replace(early=several(*made))


def drawn(*made) -> Callable[[Stack], Stack]:
  """Returns what replaces the draw; a sampler that learns stands where it learns from."""
  (layer,) = several(*made)
  if layer.fact(fm.core.Prepares) is not None:
    return lambda stack: stack._replace(draw=(), first=(layer,))
  if layer.client is not None or layer.cohort is not None:
    return lambda stack: stack._replace(draw=(), early=(layer,))
  return lambda stack: stack._replace(draw=(layer,))


def left_out(made: fm.Layer) -> Callable[[Stack], Stack]:
  """Returns what adds a layer that leaves clients out, after the draw."""
  return lambda stack: stack._replace(filters=(made,))


def weighed(made: fm.Layer) -> Callable[[Stack], Stack]:
  """Returns what replaces the weighing."""
  return lambda stack: stack._replace(weigh=(made,))


def also_central(stack: Stack) -> Stack:
  """Returns a stack with noise on the sum as well, which needs a fixed divisor."""
  stack = stack._replace(weigh=summed())
  hidden = any(x.fact(fm.core.Masks) is not None for x in stack.claim)
  return stack._replace(early=central()) if hidden else stack._replace(late=central())


def others() -> dict[str, Callable[[Stack], Stack]]:
  """Returns what is combined with each claim, by its name in the table."""
  alone = [1.0] * CLIENTS
  candidates = select.power_of_choice(CLIENTS, COHORT, candidates=12, loss=loss)
  return {
    'as it is': lambda stack: stack,
    'cohorts by `poisson`': drawn(*poisson()),
    'cohorts by `uniform`': drawn(*uniform()),
    'cohorts by `round_robin`': drawn(*turns()),
    'cohorts by `importance`': drawn(select.importance(CLIENTS, COHORT)),
    'cohorts by `power_of_choice`': drawn(candidates),
    'drop-out': left_out(select.dropout(0.1)),
    'availability (`diurnal`) after the draw': left_out(select.diurnal(CLIENTS)),
    'availability (`diurnal`) before the draw': lambda stack: stack._replace(
      eligible=(select.diurnal(CLIENTS, before_draw=True),)
    ),
    'a deadline by the client’s own data': left_out(
      select.stragglers(CLIENTS, alone, deadline=2.0, looks='own data')
    ),
    'a deadline by others’ data': left_out(select.stragglers(CLIENTS, alone, deadline=2.0)),
    'weights by examples': weighed(weigh.by_examples()),
    'weights with a public cap': weighed(weigh.capped(cap=2.0, divisor=float(COHORT))),
    '`top_k` before': early(compress.top_k(fraction=0.5)),
    '`top_k` after': late(compress.top_k(fraction=0.5)),
    '`quantize` after': late(compress.quantize()),
    '`error_feedback` after': late(compress.error_feedback({'use': 'top_k', 'fraction': 0.5})),
    'robust rule (`median`)': late(aggregate.median()),
    'norms bounded on the server (`norm_bounding`)': early(aggregate.norm_bounding(1.0)),
    'byzantine clients (`sign_flip`)': early(attack.sign_flip(attackers=1)),
    'a layer that states nothing, after': late(silent()),
    'central noise as well': also_central,
    'local noise as well': lambda stack: stack._replace(weigh=summed(), early=local()),
    'DP-SGD as well': lambda stack: stack._replace(train=dp_sgd()),
  }


def refusal(stack: Stack) -> str:
  """Returns why a stack is refused, or '' if it is planned."""
  data = [{'x': np.zeros(4, np.float32)}] * CLIENTS
  params = {'w': jnp.zeros(SIZE)}
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      fm.simulate(stack.layers, params, fm.core.stack_clients(data), max_rounds=1)
  except ValueError as error:
    return str(error)
  return ''


# A claim without the same claim once more, which is not a combination.
ITSELF = {('central noise as well', 'central'), ('local noise as well', 'local')}
ITSELF |= {('DP-SGD as well', 'DP-SGD')}
# Names of the layers of a claim: refusals that differ in nothing else are listed once.
NAMES = "'(central|tree|local|algorithm|integer_noise|grid|integers|mask)'"


def table() -> str:
  """Returns the table of combinations and the list of refusals, in Markdown."""
  rows, listed = [['with', *CLAIMS], ['---'] * (len(CLAIMS) + 1)], {}
  for name, change in others().items():
    cells = []
    for claim, make in CLAIMS.items():
      words = '' if (name, claim) in ITSELF else refusal(change(make()))
      if words:
        number, _ = listed.setdefault(re.sub(NAMES, '', words), (len(listed) + 1, words))
        cells.append(f'no: {number}')
      else:
        cells.append('–' if (name, claim) in ITSELF else 'yes')
    rows.append([name, *cells])
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join([*lines, '', *(f'{n}. {words}' for n, words in listed.values())])


def page(before: str) -> str:
  """Returns the page with the table between its markers.

  Raises:
    ValueError: the page has no markers.
  """
  place = re.compile(f'({BEGIN}\n).*?({END})', re.S)
  if not place.search(before):
    raise ValueError(f'the page must hold {BEGIN} and {END}, got none.')
  return place.sub(lambda found: f'{found[1]}\n{table()}\n\n{found[2]}', before)


def main(words: list[str]) -> int:
  """Writes the page, or with --check says whether it is up to date; returns the exit code."""
  before = PAGE.read_text(encoding='utf-8')
  after = page(before)
  if words == ['--check']:
    print('up to date' if after == before else f'{PAGE.name} holds another table')
    return int(after != before)
  PAGE.write_text(after, encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
