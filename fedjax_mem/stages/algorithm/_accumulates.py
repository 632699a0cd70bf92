"""What a server keeps of all clients, though only some of them take part in a round."""

import dataclasses

from fedjax_mem.core import Fact, IncompatibleStages, Layer, Rescales, Round


@dataclasses.dataclass(frozen=True)
class Accumulates(Fact):
  """This server side keeps a weighted mean over all N clients, and each round adds its changes.

  With weights w_k, W their sum over all clients and S the cohort, a mean over all, sum w_k z_k / W,
  changes by sum_S w_k dz_k / W. That is the cohort's mean times (sum_S w_k) / W, whoever is in it,
  also under a fixed divisor, by which the engine gives both; with equal weights, |S| / N.

  Attributes:
    total: W; N where all weigh the same.
  """

  sides = ('server',)
  total: float

  def check(self, round: Round, layer: Layer) -> None:
    """Raises `IncompatibleStages` where W is wrong or private, or a sum is not what changed."""
    clients, weighing = round.draws.population, round.weighing.name
    if round.weighs.alike and self.total != clients:
      raise IncompatibleStages(
        f'{layer.name!r} keeps a mean over all clients, which {weighing!r} weighs alike: '
        f'total_weight must be their number, {clients}, got {self.total!r}.'
      )
    if round.claims and not round.weighs.alike:
      raise IncompatibleStages(
        f'{layer.name!r} divides by the weights of all clients together, which are private under '
        f'{weighing!r}: weigh all alike, by equal.'
      )
    for other, _, _ in round.having(Rescales):
      raise IncompatibleStages(
        f'{layer.name!r} adds up what each client changed, and {other.name!r} multiplies it by a '
        'number of the round: select by a sampler that does not, such as uniform.'
      )
