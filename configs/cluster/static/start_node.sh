#!/usr/bin/env bash
# Join this machine to a cluster whose head start_head.sh has started: start_node.sh HEAD:PORT [ADDRESS]
# ADDRESS is the one at which the other nodes reach this machine.
set -euo pipefail

head=${1:?usage: start_node.sh HEAD:PORT [ADDRESS]}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

if [ ! -s "$token" ]; then
  echo "no token at $token: copy it from the head, readable by you alone" >&2
  exit 2
fi
chmod 600 "$token"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
ray start --address="$head" ${2:+--node-ip-address="$2"} --disable-usage-stats
