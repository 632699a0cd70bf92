# What the examples of deployment share; to be sourced. They work in a temporary folder, which is
# removed in the end with every process that was started, also after an error or Ctrl-C.

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command=$(command -v fedjax-mem || echo "$PWD/.venv/bin/fedjax-mem")
if [ ! -x "$command" ] || ! command -v pgrep > /dev/null; then
  echo "this needs fedjax-mem (pip install -e '.[deploy]') and pgrep (apt-get install procps)" >&2
  exit 2
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/fedjax-mem-deploy-XXXXXX")
export JAX_PLATFORMS=cpu # so many processes do not share an accelerator

# Every process that was started, by us or by the engine, names the temporary folder.
ours() { pgrep -f -- "$work${1:-}" || true; }

# Kills every process that names a folder in it.
lose() {
  local pid
  for pid in $(ours "$1"); do kill -KILL "$pid" 2> /dev/null || true; done
}

clean() {
  local status=$?
  trap '' INT TERM
  [ "$status" = 0 ] || [ "$status" -gt 128 ] || tail -n 3 "$work"/*.log >&2 || true
  kill -KILL $(jobs -p) 2> /dev/null || true
  while [ -n "$(ours)" ]; do
    lose ''
    sleep 0.1
  done
  wait 2> /dev/null || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a command; a trap waits for `wait` alone.
run() { "$@" & wait "$!"; }

free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)) && (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
    :
  done
  echo "$port"
}

# Makes the keys of the named clients, and starts the server of a configuration and all of them.
deploy() {
  local config=$1 name port
  shift
  port=$(free_port)
  run "$command" deploy keys "$work/kits" --clients "$(IFS=,; echo "$*")" \
    --port "$port" --admin-port "$(free_port)" > "$work/keys.log"
  "$command" deploy server "$config" --kit "$work/kits/server" --out "$work/runs" --quiet &
  server=$!
  for name in "$@"; do
    "$command" deploy client --kit "$work/kits/$name" --wait 120 > "$work/$name.log" 2>&1 &
    disown # the shell says nothing of one that is killed
  done
}

# Waits for a line in the run's own log.
wait_for() {
  until grep -qs -- "$1" "$work"/runs/*/deploy.log; do
    kill -0 "$server" 2> /dev/null || return 1
    run sleep 0.02
  done
}

# Shows a number of the last round of a run.
last() { tail -n 1 "$1"/metrics.jsonl | sed -nE "s/.*\"$2\": ([0-9.e-]+).*/\1/p"; }

# Ends the deployment, runs the same configuration as a simulation, and shows both.
compare() {
  local config=$1 name simulated deployed
  wait "$server"
  run "$command" run "$config" --out "$work/simulated" --quiet > "$work/simulated.log"
  for name in deployed:runs simulated:simulated; do
    set -- "$work/${name#*:}"/*/
    printf '%-9s  test accuracy %.4f' "${name%:*}" "$(last "$1" test_accuracy)"
    [ -z "$(last "$1" epsilon)" ] || printf '  epsilon %.1f' "$(last "$1" epsilon)"
    echo
  done
}
