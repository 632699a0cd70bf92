"""How much each client counts."""

from fedjax_mem.stages.weigh.by_examples import by_examples
from fedjax_mem.stages.weigh.capped import capped
from fedjax_mem.stages.weigh.equal import equal

WEIGHINGS = {'examples': by_examples, 'equal': equal, 'capped': capped}

__all__ = ('WEIGHINGS', 'by_examples', 'capped', 'equal')
