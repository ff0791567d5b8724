#!/usr/bin/env bash
# Times `synclave sync A B` beside rsync, and beside rclone and unison where they are installed, on the same trees.
#
#   benches/peers/run.sh [SYNCLAVE]        default: target/release/synclave
#
# Environment: ROUNDS (3), SOURCE (~/.cargo/registry/src: what the tree is made of), COPIES (3, of it), BIG_MIB (1024, the
# one big file), WORK (a directory on the file system to measure; default: a new one in the current directory, removed at
# the end), LIMIT (900 s for all of it: rounds that would begin later are left out, and said).
#
# The tools take turns within a round, the medians of the rounds are compared, nothing is left out of them. The source's
# pages are cached (it has just been written or read); each round writes into directories of its own, and nothing is deleted
# before the end, since ext4 looks longer for inodes where many were freed a moment ago. `sync` empties the write-back queue
# before each run, outside the clock. rsync, rclone and unison return before anything is durable, so rsync is also timed
# with `sync -f` of the destination behind it, and once with --fsync.
set -euo pipefail

here=$PWD
synclave=$(realpath "${1:-target/release/synclave}")
rounds=${ROUNDS:-3}
source=${SOURCE:-$HOME/.cargo/registry/src}
copies=${COPIES:-3}
big_mib=${BIG_MIB:-1024}
limit=${LIMIT:-900}
work=${WORK:-$(mktemp -d "$here/peers.XXXXXX")}
results=$work/results
mkdir -p "$work"
: > "$results"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

has() { command -v "$1" > /dev/null; }

# run CASE TOOL COMMAND…: wall seconds and peak KiB of one run.
run() {
  local case=$1 tool=$2
  shift 2
  sync
  if ! /usr/bin/time -q -o "$work/time" -f '%e %M' "$@" > "$work/output" 2>&1; then
    echo "$tool failed in $case:" >&2
    tail -n 5 "$work/output" >&2
    exit 1
  fi
  echo "$case $tool $(cat "$work/time")" >> "$results"
}

# one CASE A B SUFFIX: each tool once, from A to its own copy B.TOOL.
one() {
  local case=$1 a=$2 b=$3
  run "$case" synclave "$synclave" sync "$a" "$b.synclave" --data-dir "$work/state.$(basename "$b")"
  run "$case" rsync rsync -a --delete --exclude /.synclave "$a/" "$b.rsync/"
  run "$case" rsync+sync sh -c "rsync -a --delete --exclude /.synclave '$a/' '$b.rsync+sync/' && sync -f '$b.rsync+sync'"
  if has rclone; then run "$case" rclone rclone sync --links --exclude '/.synclave/**' "$a" "$b.rclone"; fi
  if has unison; then
    run "$case" unison env UNISON="$work/unison" unison -batch -silent -times -perms -1 -ignore 'Path .synclave' "$a" "$b.unison"
  fi
}

copies_of() {
  for tool in synclave rsync rsync+sync rclone unison; do mkdir -p "$1.$tool"; done
}

# Edits 1 % of the files and renames a directory.
change() {
  find "$1" -path "$1/.synclave" -prune -o -type f -size -256k -print | sort | awk -v n="$2" 'NR % 100 == n' |
    while IFS= read -r file; do echo "edit $2" >> "$file"; done
  mv "$1/copy1$3" "$1/copy1$4"
}

echo "making the trees in $work" >&2
mkdir -p "$work/A" "$work/BIG"
for copy in $(seq "$copies"); do
  mkdir "$work/A/copy$copy"
  cp -a "$source/." "$work/A/copy$copy/"
  # Each copy has contents of its own, or all but the first would be found at the destination already.
  [ "$copy" = 1 ] || find "$work/A/copy$copy" -type f -print0 |
    COPY=$copy xargs -0 -n 1000 sh -c 'for file; do echo "$COPY $file" >> "$file"; done' sh
done
head -c "${big_mib}M" /dev/urandom > "$work/BIG/big"
# Times that are not young: no tool has to doubt what it saw.
sleep 3

previous=
for round in $(seq "$rounds"); do
  if [ "$SECONDS" -gt "$limit" ]; then echo "over $limit s: round $round and later are left out" >&2; break; fi
  echo "round $round of $rounds" >&2
  rm -rf "$work/A/.synclave" "$work/BIG/.synclave"
  copies_of "$work/B$round"
  one first "$work/A" "$work/B$round"
  one nothing "$work/A" "$work/B$round"
  change "$work/A" "$round" "$previous" "-renamed$round"
  previous="-renamed$round"
  one change "$work/A" "$work/B$round"
  copies_of "$work/G$round"
  one big "$work/BIG" "$work/G$round"
done
mkdir "$work/fsync"
run first rsync--fsync rsync -a --fsync --exclude /.synclave "$work/A/" "$work/fsync/"

files=$(find "$work/A" -path "$work/A/.synclave" -prune -o -type f -print | wc -l)
echo "$files files, $(du -sm --exclude=.synclave "$work/A" | cut -f1) MiB; one file of $big_mib MiB; $(nproc) cores, $(uname -r), $(stat -f -c %T "$work")"
sort -k1,1 -k2,2 -k3,3n "$results" | awk '
  function close_group() {
    if (n == 0) return
    m = n % 2 ? wall[(n + 1) / 2] : (wall[n / 2] + wall[n / 2 + 1]) / 2
    key = group; median[key] = m; peak[key] = most; runs[key] = n; order[++count] = key
  }
  { if ($1 " " $2 != group) { close_group(); group = $1 " " $2; n = 0; most = 0 }
    wall[++n] = $3; if ($4 > most) most = $4 }
  END {
    close_group()
    printf "%-8s %-13s %9s %6s %10s %s\n", "case", "tool", "median s", "runs", "peak MiB", "synclave is … times as fast"
    for (i = 1; i <= count; i++) {
      split(order[i], part, " "); ours = median[part[1] " synclave"]
      printf "%-8s %-13s %9.2f %6d %10.1f %.2f\n", part[1], part[2], median[order[i]], runs[order[i]], peak[order[i]] / 1024, (ours ? median[order[i]] / ours : 0)
    }
  }'
