"""Robust rules and attacks in the wrong place.

The cohort side of a robust rule states `Rule`, that of byzantine clients `Attacks`. A cohort side
that states nothing may be a robust rule: it is refused where the sum is divided by a fixed number.
"""

from fedjax_mem.core import (
  Attacks,
  IncompatibleStages,
  Integers,
  Layer,
  Masks,
  Noises,
  Round,
  Rule,
)


def check(layers: Round) -> None:
  """Raises `IncompatibleStages` for a rule or an attack in the wrong place, naming both layers.

  Args:
    layers: of the round, their order checked.
  """
  rows = layers.draws.expected
  for layer in layers:
    rule = layer.fact(Rule)
    if rule is None and layer.fact(Attacks) is None:
      continue
    _check_visible(layer, layers)
    if rule is None:
      continue
    _check_divisor(layer, layers)
    if rows < rule.least:
      raise IncompatibleStages(
        f'{layer.name!r} needs {rule.why}, and {layers.drawing.name!r} selects about {rows:g} '
        f'clients{_fewer(layers.before(layer))}: select more, or withstand fewer.'
      )
    rows = rule.rows(int(rows))


def check_silent(layers: Round) -> None:
  """Raises for a cohort side that states nothing, if its result is divided by a fixed number."""
  for x, side in layers.silent:
    if side == 'cohort' and layers.weighs.divisor is not None:
      raise IncompatibleStages(
        f'the cohort side of {x.name!r} does not state what it does to updates, and '
        f'{layers.weighing.name!r} divides their sum by {layers.weighs.divisor:g}, whoever has '
        'arrived: weigh without a fixed divisor, or state its facts.'
      )


def _fewer(before: tuple[Layer, ...]) -> str:
  """Returns words for the layers that leave fewer rows than enter."""
  rules = [(x.name, x.fact(Rule)) for x in before]
  names = [name for name, rule in rules if rule is not None and rule.rows(2) < 2]
  return f', fewer after {names[-1]!r}' if names else ''


def _check_visible(layer: Layer, layers: Round) -> None:
  """Raises where a rule or an attack would see masked updates, or integers modulo 2 ** bits."""
  # A mask anywhere in the round hides updates from a rule, which the server runs; an attack may
  # come before the mask. Integers are seen only by layers after the one that makes them.
  hidden = [x for x, _, _ in layers.having(Masks)] if layer.fact(Rule) is not None else []
  whole = [x for x in layers.before(layer) if x.fact(Integers) is not None]
  for x in (*whole, *hidden):
    raise IncompatibleStages(
      f"{layer.name!r} looks at each client's own update, and {x.name!r} leaves integers that "
      f'are seen only as a sum: remove one of the two.'
    )


def _check_divisor(layer: Layer, layers: Round) -> None:
  """Raises for a fixed divisor: the sum of a rule's rows divided by it is not the rule's result."""
  divisor = layers.weighs.divisor
  noisy = [x.name for x, side, _ in layers.having(Noises) if side == 'server']
  if divisor is not None and noisy:
    raise IncompatibleStages(
      f'{layer.name!r} and {noisy[0]!r} do not go together: noise on the sum needs a fixed '
      'divisor, and the result of a rule is a mean: weigh without a fixed divisor and add noise on '
      'the clients (local), or remove one of the two.'
    )
  if divisor is not None:
    raise IncompatibleStages(
      f'{layer.name!r} gives updates whose mean is the result, and {layers.weighing.name!r} '
      f'divides their sum by {divisor:g}, whoever has arrived: weigh without a fixed divisor.'
    )
