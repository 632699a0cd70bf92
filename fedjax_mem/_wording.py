"""Words that rooms share which do not import each other, and that import no jax."""

NOT_COVERED = 'not covered by ε'  # beside whatever a claim of privacy does not cover
