#!/usr/bin/env bash
# Start Ray's head on this machine, with a token and without a dashboard: start_head.sh [ADDRESS [PORT]]
# ADDRESS is the one at which the other nodes reach this machine. Prints what to do on them.
set -euo pipefail

address=${1:-$(hostname -I | cut -d' ' -f1)}
port=${2:-6379}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

if [ ! -s "$token" ]; then
  mkdir -p "$(dirname "$token")"
  (umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > "$token")
  echo "made a token: $token"
fi
chmod 600 "$token"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false --disable-usage-stats

echo
echo "on every other node: copy $token there (mode 600), then: start_node.sh $address:$port"
echo "then here:           tuneoff doctor --address $address:$port"
