#!/usr/bin/env bash
# Builds the image around a static binary and runs compose.yaml with it: as another user than root, on a read-only root, it
# becomes healthy, syncs two mounted directories, and ends in time and in good order when it is told to.
#
# Usage: docker/test.sh [STATIC-BINARY]. Without one it is built. Pulls nothing. Needs docker and docker-compose (or its
# plugin); where no daemon answers, root starts one that ends with the test, on a network of its own.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly START_DEADLINE=60 # seconds, for all three to become healthy
readonly STOP_GRACE=30     # seconds, as in compose.yaml

fail() {
    echo "docker/test.sh: $*" >&2
    exit 1
}

check() { # NAME COMMAND...
    local name="$1"
    shift
    "$@" || fail "FAILED: $name"
    echo "ok: $name"
}

scratch="$(mktemp -d)"
daemon=
export SYNCLAVE_IMAGE="synclave-test-$$" SYNCLAVE_PORT=0

compose() { "${compose_command[@]}" --file docker/compose.yaml --project-name "$SYNCLAVE_IMAGE" "$@"; }

end() {
    local code=$?
    if [ -n "${up:-}" ]; then
        [ "$code" = 0 ] || compose logs --no-color --tail 40 >&2 || true
        compose down --volumes >/dev/null 2>&1 || true
    fi
    [ -z "${built:-}" ] || docker rmi --force "$SYNCLAVE_IMAGE" >/dev/null 2>&1 || true
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$scratch"
    exit "$code"
}
trap end EXIT

# A daemon that shares the machine's network would rewrite the rules of its firewall.
start_daemon() {
    export DOCKER_HOST="unix://$scratch/docker.sock"
    unshare --mount --net -- sh -c '
        ip link set lo up &&
        exec dockerd --host "$0" --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/docker.pid"
    ' "$DOCKER_HOST" "$scratch" >"$scratch/dockerd.log" 2>&1 &
    daemon=$!
    for _ in $(seq 300); do
        ! docker info >/dev/null 2>&1 || return 0
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$scratch/dockerd.log" >&2
    fail "dockerd does not start here (its last words are above); run this where a Docker daemon answers"
}

settings() { grep -E '^(USER|STOPSIGNAL|ENTRYPOINT|CMD|EXPOSE|HEALTHCHECK) ' "$1"; }

check 'both Dockerfiles set the same' diff <(settings docker/Dockerfile) <(settings docker/prebuilt.Dockerfile)

command -v docker >/dev/null || fail "docker is missing: install Docker (Debian: docker.io), then run this again"
if docker compose version >/dev/null 2>&1; then
    compose_command=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose_command=(docker-compose)
else
    fail "docker-compose is missing: install it or the compose plugin (Debian: docker-compose), then run this again"
fi
if ! docker info >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null ||
        fail "no Docker daemon answers: start one, or run this as root with dockerd installed (Debian: docker.io)"
    start_daemon
fi

binary="${1:-}"
if [ -z "$binary" ]; then
    host="$(rustc --print host-tuple)"
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$host"
    binary="${CARGO_TARGET_DIR:-target}/$host/release/synclave"
fi

mkdir -p "$scratch/context/data"
cp "$binary" "$scratch/context/synclave"
# The classic builder is enough, and is there without a plugin.
DOCKER_BUILDKIT=0 docker build --quiet --file docker/prebuilt.Dockerfile --tag "$SYNCLAVE_IMAGE" "$scratch/context" >/dev/null ||
    fail "FAILED: the image is built"
built=1
echo "ok: the image is built, $(docker image inspect --format '{{.Size}}' "$SYNCLAVE_IMAGE" | numfmt --to=si --suffix=B)"

# Root hands the directories to the image's user; anybody else lets the providers run as themselves.
export LEFT="$scratch/left" RIGHT="$scratch/right" SYNCLAVE_USER=65532:65532
mkdir "$LEFT" "$RIGHT"
if [ "$(id -u)" = 0 ]; then
    chmod 711 "$scratch" # the providers have to get to their directories
    chown "$SYNCLAVE_USER" "$LEFT" "$RIGHT"
else
    SYNCLAVE_USER="$(id -u):$(id -g)"
fi

services=(coordinator left right)
declare -A id

start() {
    local service
    compose up --detach --no-build "$@" >"$scratch/up.log" 2>&1 || {
        cat "$scratch/up.log" >&2
        return 1
    }
    for service in "${services[@]}"; do
        id[$service]="$(compose ps --quiet "$service")"
    done
}

state() { # SERVICE TEMPLATE
    docker inspect --format "$2" "${id[$1]}"
}

healthy() {
    local deadline=$((SECONDS + START_DEADLINE)) service
    for service in "${services[@]}"; do
        until [ "$(state "$service" '{{.State.Health.Status}}')" = healthy ]; do
            [ "$SECONDS" -lt "$deadline" ] || return 1
            sleep 0.5
        done
    done
}

not_root() {
    local service
    for service in "${services[@]}"; do
        docker top "${id[$service]}" -eo uid,pid |
            awk 'NR > 1 && $1 == 0 { root = 1 } END { exit NR < 2 || root }' || return 1
    done
}

# Not even root may write there. Where it may, the server would run: the time ends the test, not the server.
root_is_read_only() {
    ! timeout 20 "${compose_command[@]}" --file docker/compose.yaml --project-name "$SYNCLAVE_IMAGE" exec -T --user 0:0 \
        coordinator synclave serve --listen 127.0.0.1:0 --data-dir /usr/local/bin/state \
        2>"$scratch/refused" && grep -q 'Read-only file system' "$scratch/refused"
}

sync() {
    compose exec -T coordinator synclave operation start http://left:50051 http://right:50051 --wait
}

same() { diff --recursive --exclude .synclave "$LEFT" "$RIGHT"; }

# Files are handed to the user that the providers run as.
write() { # DIRECTORY NAME, content from stdin
    cat >"$1/$2"
    [ "$(id -u)" != 0 ] || chown "$SYNCLAVE_USER" "$1/$2"
}

# The ids of all replicas that were ever in sync, as far as sessions are remembered.
replicas() {
    compose exec -T coordinator synclave watch --state in-sync --once --output json |
        grep -o '"memberGuid":"[^"]*"' | sort --unique
}

ended_in_order() { # SERVICE
    local began=$SECONDS
    docker stop --time "$STOP_GRACE" "${id[$1]}" >/dev/null
    [ $((SECONDS - began)) -lt "$STOP_GRACE" ] && [ "$(state "$1" '{{.State.ExitCode}}')" = 0 ]
}

up=1
check 'compose.yaml starts' start
check 'all three are SERVING' healthy
check 'none runs as root' not_root
check 'the root is read-only' root_is_read_only

echo left | write "$LEFT" one
echo right | write "$RIGHT" two
check 'two directories are synced' sync
check 'they hold the same' same
[ -s "$LEFT/two" ] && [ -s "$RIGHT/one" ] || fail "FAILED: each got what the other had"

replicas >"$scratch/replicas"

# A provider that does not answer is the worst that a coordinator can have to end with; once it does, the operation goes on.
echo more | write "$LEFT" three
docker pause "${id[right]}" >/dev/null
operation="$(compose exec -T coordinator synclave operation start http://left:50051 http://right:50051 --output json |
    sed 's/.*"operationId":"\([^"]*\)".*/\1/')"
check 'SIGTERM ends a coordinator with a session under way with 0 and in time' ended_in_order coordinator
docker unpause "${id[right]}" >/dev/null
check 'SIGTERM ends a provider with 0 and in time' ended_in_order left
check 'SIGTERM ends the other provider with 0 and in time' ended_in_order right
check 'compose.yaml starts again, with new containers' start --force-recreate
check 'all three are SERVING again' healthy
check 'the operation goes on by itself' compose exec -T coordinator synclave operation get "$operation" --wait
check 'they hold the same again' same
replicas >"$scratch/replicas.now"
check 'both are still the same replicas' cmp "$scratch/replicas" "$scratch/replicas.now"
