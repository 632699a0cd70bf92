#!/usr/bin/env bash
# Secure aggregation on this machine: a server and five clients, over mutual TLS. In the second round
# one client is killed (kill -9) as soon as the server has everyone's shares of keys. What is
# missing is restored from the shares that the others hold, and the run goes on without it.
#
#   scripts/examples/deploy_secagg.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/deploy_common.sh"

config=configs/deploy_secagg.toml
deploy "$config" north south west east centre
wait_for 'round 2: SHARES: 5 of 5'
lose /kits/east
echo 'east is killed; the exchanges of the server, in which it is missing from then on:'
wait_for 'round 3: UNMASK'
grep -h 'round 2:' "$work"/runs/*/deploy.log
compare "$config"
