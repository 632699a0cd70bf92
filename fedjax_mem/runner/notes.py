"""What is said about a round once its record is there: who was left out, what was not done."""

from collections.abc import Iterator, Sequence
from typing import Any


def of_round(record: dict[str, Any], clients: Sequence[Any] | None = None) -> Iterator[str]:
  """Yields a line for each thing in a round's record that a user has to know.

  >>> list(of_round({'round': 3, 'not_finite': [0, 2]}, ['a', 'b', 'c']))
  ['round 3: left out, not finite: the updates of a, c']

  Args:
    record: of the round; `covered` in it says what a claim of privacy covers.
    clients: names of the clients; None: they have none.
  """
  begin = f'round {record["round"]}:'
  for name in [x for x in record if x.endswith('/skipped') and record[x]]:
    yield f'{begin} skipped, too few clients were left for {_layer(name)}{_covered(name, record)}'
  for name in [x for x in record if x.endswith('/left_out') and record[x]]:
    yield (
      f'{begin} {record[name]:g} messages did not fit and were left out by {_layer(name)}'
      f'{_covered(name, record)}'
    )
  if record.get('zeroed'):
    yield f'{begin} {record["zeroed"]} updates were not finite and count as zeros (not covered)'
  if 'not_finite' in record:
    who = [str(clients[x] if clients else x) for x in record['not_finite']]
    yield f'{begin} left out, not finite: the updates of {", ".join(who)}'


def _layer(name: str) -> str:
  return repr(name.rpartition('/')[0])


def _covered(name: str, record: dict[str, Any]) -> str:
  return '' if name in record.get('covered', (name,)) else ' (not covered)'
