"""What the protocol raises."""


class ProtocolError(ValueError):
  """A message or a request that the protocol does not allow; what refused it is as before."""


class BelowThreshold(ProtocolError):
  """Fewer clients are left than the threshold: the session is over and nothing is released."""
