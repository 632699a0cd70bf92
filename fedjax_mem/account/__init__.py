"""Privacy accounting on the host: epsilon by RDP and PLD, calibration, and the ledger of a run.

`epsilon` is computed in `accountant.py`, from the event that a mechanism states for its rounds.
"""

from fedjax_mem.account.accountant import (
  NOT_COVERED,
  Claim,
  Guarantee,
  Trajectory,
  claim,
  epsilon,
  level,
  trajectory,
)
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.account.table import privacy_table

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
  'trajectory',
)
