"""The engine: cohorts of clients in parallel, rounds in a row, all in one compiled program."""

from fedjax_mem.engine.evaluate import evaluator
from fedjax_mem.engine.execution import Execution, describe, in_table
from fedjax_mem.engine.plan import table_bytes
from fedjax_mem.engine.run import Simulation, simulate

__all__ = (
  'Execution',
  'Simulation',
  'describe',
  'evaluator',
  'in_table',
  'simulate',
  'table_bytes',
)
