#!/usr/bin/env bash
# Starts each example provider, syncs it with a directory through a coordinator, and has the conformance kit look at it, at a simple
# one both as it is and through `provider simple`; then those in Python in one group with a directory and a table.
# Usage: examples/check.sh PATH-OF-SYNCLAVE.
#
# Needs Python 3 with venv, Node.js 20 or later with npm, and Go 1.26 or later; installs the rest inside the clone, where git does
# not look. What is missing fails it.
set -euo pipefail

synclave="$(realpath "$1")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

need() {
    command -v "$1" >/dev/null || {
        echo "$1 is missing: install $2, then run examples/check.sh again" >&2
        exit 1
    }
}
need python3 "Python 3 with venv"
need npm "Node.js 20 or later with npm"
need go "Go 1.26 or later"

echo '-- Python'
venv=.ci-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r examples/python/requirements.txt
generated="$venv/generated"
rm -rf "$generated"
mkdir -p "$generated"
"$venv/bin/python" -m grpc_tools.protoc -I proto \
    --python_out="$generated" --grpc_python_out="$generated" proto/synclave/v1/*.proto
export PYTHONPATH="$generated"
python="$venv/bin/python"

echo '-- TypeScript'
npm install --prefix examples/node --loglevel=error --no-audit --no-fund
npm run --prefix examples/node build --silent

echo '-- Go'
(cd examples/go && go generate && go vet . && go build -o simpleprovider .)

failed=0
check() {
    "$python" examples/check_example.py "$synclave" "$@" || failed=1
}
check simple 'simple provider in Python' "$python" examples/python/simple_provider.py
check simple 'simple provider in TypeScript' node examples/node/dist/simple_provider.js
check simple 'simple provider in Go' examples/go/simpleprovider
check full 'provider in Python' "$python" examples/python/json_provider.py
"$python" examples/check_group.py "$synclave" || failed=1
exit "$failed"
