"""Many runs: attacks on a claim, and tables of methods."""
