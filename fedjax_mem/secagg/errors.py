"""Errors of the protocol."""


class ProtocolError(ValueError):
  """The protocol does not allow a message or request.

  Its receiver is unchanged, but an error of `Server.close_round` ends the session.
  """


class BelowThreshold(ProtocolError):
  """Fewer clients are left than the threshold; nothing is released."""
