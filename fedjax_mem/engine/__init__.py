"""The engine: cohorts of clients in parallel, rounds in a row, all in one compiled program.

Read `run.py` (many rounds) first, then `round.py` (one round) and `walk.py` (the order of the
sides). Code that runs a round in another way, such as the objects of `federated`, plans it by
`make_setting` and calls the passes of `walk.py` itself.
"""

from fedjax_mem.engine.apply import Applied as Applied
from fedjax_mem.engine.apply import apply as apply
from fedjax_mem.engine.cast import Row as Row
from fedjax_mem.engine.cast import broadcast as broadcast
from fedjax_mem.engine.cast import context as context
from fedjax_mem.engine.cast import examples as examples
from fedjax_mem.engine.clients import Layout as Layout
from fedjax_mem.engine.evaluate import evaluator as evaluator
from fedjax_mem.engine.evaluate import per_example as per_example
from fedjax_mem.engine.execution import Execution as Execution
from fedjax_mem.engine.execution import describe as describe
from fedjax_mem.engine.execution import in_table as in_table
from fedjax_mem.engine.mesh import compiler_options as compiler_options
from fedjax_mem.engine.mesh import make_mesh as make_mesh
from fedjax_mem.engine.plan import make_setting as make_setting
from fedjax_mem.engine.plan import table_bytes as table_bytes
from fedjax_mem.engine.run import Simulation as Simulation
from fedjax_mem.engine.run import simulate as simulate
from fedjax_mem.engine.setting import Setting as Setting
from fedjax_mem.engine.split import Given as Given
from fedjax_mem.engine.split import Made as Made
from fedjax_mem.engine.split import Told as Told
from fedjax_mem.engine.split import client_layers as client_layers
from fedjax_mem.engine.split import drawn as drawn
from fedjax_mem.engine.split import first_rows as first_rows
from fedjax_mem.engine.split import first_state as first_state
from fedjax_mem.engine.split import one_client as one_client
from fedjax_mem.engine.split import settled as settled
from fedjax_mem.engine.walk import client_pass as client_pass
from fedjax_mem.engine.walk import cohort_pass as cohort_pass
from fedjax_mem.engine.walk import message_pass as message_pass
from fedjax_mem.engine.walk import select_pass as select_pass
from fedjax_mem.engine.walk import server_pass as server_pass
