"""One run on the host: its folder, segments of rounds, ledgers, checkpoints, progress."""
