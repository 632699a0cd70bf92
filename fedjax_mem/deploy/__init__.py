"""Real machines: the rounds of the simulation over mutual TLS, through NVIDIA FLARE.

`serving` is the server's side of a job and `answering` a client's; they plan the same round, as
`form` writes its messages, in envelopes of `messages`. `flare` is all that the engine loads.
"""
