"""Other simulators doing the same works, each as fast as it can be made here.

All of them, and `benchmarks/serve.py` of every commit of ours, are asked by the same protocol,
started as `python -m MODULE FOLDER [--OPTION VALUE ...]`. It is frozen: a later commit is compared
with an earlier one by it, so nothing below changes its meaning, and what is added may be left out.

FOLDER holds

- `work.json`: the fields of `works.Work` as of this protocol's first version, all of them. A field
  that is added later has a default, and is written only where it differs from it: who does not know
  a field refuses it rather than running another work.
- `x.npy` [T, ...] uint8 images of 28 x 28, to be divided by 255, and `y.npy` [T] labels in 0 ... 9;
  with the later field `data`, images of 32 x 32 x 3, or tokens [T, L] below 90 and the next ones.
  Client i holds the i-th block of `examples` rows of NumPy's `default_rng(0).permutation(T)`, which
  repeats where the blocks need more.
- `test_x.npy` and `test_y.npy`: the test set, likewise.

One JSON object a line is printed on standard output, and nothing else:

- first, when all is ready, the versions of what runs, name -> text. `benchmarks/serve.py` gives the
  version of `fedjax_mem` and of `jax`, and as `root` the folder that its package was imported from;
- for a line `R` on standard input, `{"seconds": [...]}`: R more rounds were run, and each entry is
  the seconds of one. Rounds that were run as one program count as equally long. The asker has the
  first ones run to warm up, and drops their seconds;
- for the line `accuracy`, `{"accuracy": a}` on the test set, of the model after the rounds so far;
  beside it may be the `loss`, the mean cross-entropy in nats.

The end of standard input ends the process. `benchmarks/serve.py` takes `--execution`, `--devices`
and `--no-pool`, with the meaning they have in `benchmarks.rounds`; they are passed only if given.
"""
