#!/bin/sh
# Start a Ray cluster of two nodes on this machine and run `bulk` on it. Run it from the project's folder.
#   sh docs/examples/two_nodes.sh [SOURCE] [FOLDER FOR THE RESULTS]
# On two machines run the first `ray start` on one, the second on the other, with the first one's address and token.
# `ray stop` at the end stops every Ray process of this user on this machine.
set -e
source=${1:-data/hands}
out=${2:-out/two_nodes}
memory=300000000
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${TMPDIR:-/tmp}/ray_token.$$"
(umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
trap 'ray stop; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
ray start --head --port 6399 --num-cpus 1 --object-store-memory $memory --include-dashboard false
ray start --address 127.0.0.1:6399 --num-cpus 1 --object-store-memory $memory
python -m utils bulk "$source" --address 127.0.0.1:6399 --out "$out"
