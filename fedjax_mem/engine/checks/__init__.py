"""What a plan refuses, each a function of the round that knows no method by name.

`composed` looks at the layers alone, `planned` at what only shapes show.
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
  byzantine.check_silent(layers)  # after what a claim has to say of it
