"""The protocol of a round and the small things everything else is written with."""

from fedjax_mem.core.bound import IN_ROUND, UNKNOWN, Bound, known
from fedjax_mem.core.context import Context
from fedjax_mem.core.examples import Examples, Population, Shape, shape_of, stack_clients
from fedjax_mem.core.facts import (
  Attacks,
  Bounds,
  Draws,
  Encodes,
  Fact,
  Integers,
  Looks,
  Masks,
  Noises,
  Pools,
  Prepares,
  Rule,
  Scores,
  Trains,
  Weighs,
  Weighted,
  Withholds,
)
from fedjax_mem.core.layer import IncompatibleStages, Layer, Pool, Stage
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.core.message import (
  Draw,
  Mean,
  Member,
  Message,
  State,
  Task,
  Total,
  scalar_member,
)
from fedjax_mem.core.round import Round, compose
