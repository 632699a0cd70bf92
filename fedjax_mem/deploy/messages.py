"""What crosses between the server and its clients."""


class Refused(ValueError):
  """A party refuses what the other one asks of it; the message is one line, cause and remedy."""
