"""`python -m fedjax_mem` is `fedjax-mem`."""

from fedjax_mem.experiment.cli import main

if __name__ == '__main__':
  raise SystemExit(main())
