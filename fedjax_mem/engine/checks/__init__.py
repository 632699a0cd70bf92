"""What a plan refuses: checks of a round by the facts of its layers, never by a method's name.

`composed` needs only the layers, `planned` also the shapes of what they pass on. Clip norms and
other bounds are checked in `bounds.py`, the place of noise and how the cohort is drawn in
`privacy.py`, sums and states without noise in `released.py`, integers and masks in `masks.py`,
codecs in `codecs.py`, robust rules and attacks in `byzantine.py`.
"""

from fedjax_mem.core import Message, Noises, Round, State, Tree
from fedjax_mem.engine.checks import bounds, byzantine, codecs, masks, privacy, released


def composed(layers: Round) -> None:
  """Raises `IncompatibleStages` for layers that break a promise, naming them."""
  for layer in layers:
    for stage in layer.sides.values():
      for fact in stage.facts:
        fact.check(layers, layer)
  codecs.check(layers)
  masks.check(layers)
  byzantine.check(layers)
  privacy.check(layers)


def planned(layers: Round, specs: dict[str, Tree], sent: Message, state: State) -> None:
  """Raises `IncompatibleStages` for what only shapes show.

  Args:
    layers: of the round.
    specs: for each layer after the algorithm, the shapes of what its client side receives.
    sent: shapes of what leaves the last client side.
    state: shapes of the state before the first round.
  """
  if layers.having(Noises):
    bounds.check(layers, specs, sent)
    released.check(layers, specs, sent, state)
  byzantine.check_silent(layers)  # last, since the checks of privacy name the cause more exactly
