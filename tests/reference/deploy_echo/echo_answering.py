"""A client that answers with what it got and the job's payload."""

import time

from fedjax_mem.deploy.messages import Refused


def open(place, job):
  """Returns what answers; `place` may name a client that refuses the job."""
  import jax  # as a real client does

  del jax
  if place.get('refuse'):
    raise Refused(place['refuse'])

  def answer(blob):
    if blob.startswith(b'sleep'):
      time.sleep(1.5)
    if blob.startswith(b'fail') and place.get('fails'):
      raise RuntimeError('it fails')
    return job + b' ' + blob

  return answer
