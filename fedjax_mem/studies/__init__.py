"""Studies of many runs: attacks on a privacy claim, and tables that compare methods."""
