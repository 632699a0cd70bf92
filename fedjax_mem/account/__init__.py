"""Privacy accounting on the host: epsilon by RDP and PLD, calibration, and the ledger of a run.

`accountant.py` chooses the accountant; `claims.py` computes epsilon, from the event that a
mechanism states for its rounds.
"""

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.account.accountant import claim, epsilon, trajectory
from fedjax_mem.account.claims import Claim
from fedjax_mem.account.guarantee import Guarantee, Trajectory, level
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.account.table import privacy_table
from fedjax_mem.account.together import together

__all__ = (
  'NOT_COVERED',
  'Claim',
  'Guarantee',
  'Ledger',
  'LocalLedger',
  'Trajectory',
  'claim',
  'epsilon',
  'level',
  'privacy_table',
  'together',
  'trajectory',
)
