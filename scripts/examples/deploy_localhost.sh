#!/usr/bin/env bash
# A server and three clients on this machine, over mutual TLS: clipped updates, of which the largest
# quarter crosses, and noise on their sum. Then the same configuration as a simulation. The noise is
# fresh in each, so the accuracies differ by a few points.
#
#   scripts/examples/deploy_localhost.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/deploy_common.sh"

config=configs/deploy_digits.toml
deploy "$config" north south west
compare "$config"
