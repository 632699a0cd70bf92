"""Rounds that send what the place file says, and record who answers what."""

import json
import time


def serve(place, link):
  """Runs the script of the place file; then goes on until the job is aborted, if told to linger."""
  with open(place['record'], 'w', buffering=1) as record:
    for text, timeout in place['script']:
      _exchange(record, link, text, timeout)
    while place.get('linger') and not link.stopped():
      _exchange(record, link, 'again', 3)
      time.sleep(0.1)
  return 'finished'


def _exchange(record, link, text, timeout):
  connected, began = sorted(link.connected()), time.time()
  text = 'x' * text if isinstance(text, int) else text
  # A client that is not of this job is left out.
  answers = link.exchange({n: f'{text} {n}'.encode() for n in (*connected, 'nobody')}, timeout)
  found = {name: answer[:40].decode() for name, answer in sorted(answers.items())}
  facts = {'time': began, 'seconds': time.time() - began}
  record.write(json.dumps(facts | {'connected': connected, 'answers': found}) + '\n')
