#!/usr/bin/env bash
# What an accelerator does with all of this: within eight minutes on one GPU, without a network.
#
#   benchmarks/gpu_check.sh [--small] [OUT]        OUT: folder of results, by default
#                                                $OUT or benchmarks/results/gpu
#
# Needs a Python with jax >= 0.10 and its plugin for the card (PYTHON, by default python3). What else
# the parts import is in benchmarks/gpu_wheels.txt, whose head says how to bring it; wheels in
# benchmarks/wheels (or $WHEELS) are installed in a folder of their own, if the machine lacks them.
# Without an accelerator, or with --small, small shapes run: a test of this script, not a measurement.
set -uo pipefail
cd "$(dirname "$0")/.."

small=()
[ "${1:-}" = --small ] && { small=(--small); shift; }
out=${1:-${OUT:-benchmarks/results/gpu}}
python=${PYTHON:-python3}
wheels=${WHEELS:-benchmarks/wheels}
limit=455 # seconds for all parts: the rest of the eight minutes is for what is around them
slower=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
rm -f "$out"/*.json
out=$(cd "$out" && pwd)
export PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Programs that one part has compiled serve the next ones.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/compiled}

# The wheels whose packages are not there; what the machine has is left as it is.
missing=$("$python" - "$wheels" <<'PY'
import importlib.metadata, pathlib, sys
for wheel in sorted(pathlib.Path(sys.argv[1]).glob('*.whl')):
  try:
    importlib.metadata.version(wheel.name.split('-')[0])
  except importlib.metadata.PackageNotFoundError:
    print(wheel)
PY
)
if [ -n "$missing" ]; then
  echo "$missing" | xargs -d '\n' "$python" -m pip install --quiet --no-index --no-deps \
    --no-compile --disable-pip-version-check --target "$work/site" || exit 1
fi
backend=$("$python" -c 'import jax, benchmarks.gpu_check; print(jax.default_backend())') || {
  echo "a module is missing: bring the wheels of benchmarks/gpu_wheels.txt in $wheels" >&2
  exit 1
}
if [ "$backend" = cpu ] && [ ${#small[@]} = 0 ]; then
  echo 'no accelerator: small shapes'
  small=(--small)
fi
if [ ${#small[@]} != 0 ]; then # nothing is measured, so compile quickly; and wait as long as it takes
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  slower=20
fi

# Runs a part within its seconds, and within what is left of all.
part() {
  local name=$1 budget=$(($2 * slower)) left=$((limit * slower - SECONDS))
  [ "$left" -lt "$budget" ] && budget=$left
  [ "$budget" -lt 10 ] && { echo "== $name: no time is left"; return; }
  echo "== $name: at most $budget s"
  # It stops by itself between two items; if one hangs, it is stopped.
  timeout -k 5 "$budget" "$python" -m benchmarks.gpu_check "$name" ${small[@]+"${small[@]}"} \
    --budget $((budget - 8)) --out "$out/$name.json" 2>"$out/$name.log" ||
    { echo "== $name: status $?, see $out/$name.log"; tail -n 3 "$out/$name.log"; }
}

part engine 60
part works 170
part clients 50
part conv 70
part kernels 50
part peers 60
"$python" -m benchmarks.gpu_check summary --out "$out" --seconds "$SECONDS"
