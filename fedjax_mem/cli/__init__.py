"""The command line: the subcommands of `fedjax-mem`."""
