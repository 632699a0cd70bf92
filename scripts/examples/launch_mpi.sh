#!/usr/bin/env bash
# Two processes that Open MPI starts on this machine, and the same run by `fedjax-mem launch`: their
# parameters are compared bit for bit. Debian's package is enough: apt-get install openmpi-bin.
#
#   scripts/examples/launch_mpi.sh [OUT]
set -euo pipefail
out="${1:-$(mktemp -d)}"
python="${PYTHON:-python3}"
words=(-m fedjax_mem run quickstart --quiet --set rounds=20)

# As root, and on fewer cores than processes, mpirun starts nothing without being told to.
mpirun --allow-run-as-root --oversubscribe -n 2 "$python" "${words[@]}" --out "$out/mpi" --distributed
"$python" -m fedjax_mem launch --processes 2 --devices 1 "${words[@]:2}" --out "$out/launch"

cmp "$out"/mpi/*/params.safetensors "$out"/launch/*/params.safetensors
echo "the same parameters, bit for bit"
