"""Weighings: how much each client counts in the average."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.weigh.by_examples import by_examples
from fedjax_mem.stages.weigh.capped import capped
from fedjax_mem.stages.weigh.equal import equal
from fedjax_mem.stages.weigh.given import given

WEIGHINGS: dict[str, Callable[..., Layer]] = {
  'examples': by_examples,
  'equal': equal,
  'capped': capped,
  'given': given,
}

__all__ = ('WEIGHINGS', 'by_examples', 'capped', 'equal', 'given')
