"""One run, as the host sees it: its folder, segments of rounds, ledgers, checkpoints, progress."""
