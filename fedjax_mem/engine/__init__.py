"""The engine: cohorts of clients in parallel, rounds in a row, all in one compiled program.

Who runs a round in another way, such as the objects of `federated`, plans it by `make_setting` and
calls the passes of the one walk.
"""

from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.evaluate import evaluator
from fedjax_mem.engine.execution import Execution, describe, in_table
from fedjax_mem.engine.mesh import compiler_options, make_mesh
from fedjax_mem.engine.plan import make_setting, table_bytes
from fedjax_mem.engine.round import Setting
from fedjax_mem.engine.run import Simulation, simulate
from fedjax_mem.engine.walk import (
  Row,
  broadcast,
  client_pass,
  cohort_pass,
  context,
  examples,
  message_pass,
  select_pass,
  server_pass,
)
