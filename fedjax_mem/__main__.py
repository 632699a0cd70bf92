"""`python -m fedjax_mem` is `fedjax-mem`."""

from fedjax_mem.cli.main import main

if __name__ == '__main__':
  raise SystemExit(main())
