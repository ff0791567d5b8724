#!/usr/bin/env bash
# Times `synclave sync A B` beside rsync, and beside rclone and unison where they are installed, on the same trees.
#
#   benches/peers/run.sh [SYNCLAVE]        default: target/release/synclave
#
# Environment: ROUNDS (3), SOURCE (~/.cargo/registry/src: what the tree is made of), COPIES (3, of it), BIG_MIB (1024, the
# one big file), WORK (a directory on the file system to measure; default: a new one in the current directory, removed at
# the end), LIMIT (900 s until the last run has begun; what would begin later is left out, and said), RUN_LIMIT (300 s for one
# run; a tool that takes longer is left out from there on).
#
# The tools take turns within a round. Printed are medians of all runs, and the median over the rounds of the ratio to
# synclave's run in the same round. The source's
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
run_limit=${RUN_LIMIT:-300}
work=${WORK:-$(mktemp -d "$here/peers.XXXXXX")}
results=$work/results
mkdir -p "$work"
: > "$results"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

has() { command -v "$1" > /dev/null; }

left_out=

# run CASE TOOL COMMAND…: wall and processor seconds and peak KiB of one run.
run() {
  local case=$1 tool=$2 status=0
  shift 2
  case " $left_out " in *" $tool "*) return ;; esac
  if [ "$SECONDS" -gt "$limit" ]; then
    echo "over $limit s: $case of round $round is not run with $tool" >&2
    return
  fi
  sync
  timeout "$run_limit" /usr/bin/time -q -o "$work/time" -f '%e %U %S %M' "$@" > "$work/output" 2>&1 || status=$?
  if [ "$status" = 124 ]; then
    echo "$tool took more than $run_limit s in $case: it is left out" >&2
    left_out="$left_out $tool"
  elif [ "$status" != 0 ]; then
    echo "$tool failed in $case:" >&2
    tail -n 5 "$work/output" >&2
    exit 1
  else
    echo "$case $tool $round $(cat "$work/time")" >> "$results"
  fi
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
round=0
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
awk '
  # Sorts values[1..n] and returns the one in the middle.
  function median(values, n,   i, j, value) {
    for (i = 2; i <= n; i++) {
      value = values[i]
      for (j = i - 1; j > 0 && values[j] > value; j--) values[j + 1] = values[j]
      values[j + 1] = value
    }
    return n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
  }
  function middle(of, key,   i, n, values) {
    for (i = 1; i <= runs[key]; i++) values[++n] = of[key, i]
    return median(values, n)
  }
  {
    key = $1 " " $2; if (!(key in runs)) order[++count] = key
    n = ++runs[key]; round[key, n] = $3; wall[key, n] = $4; cpu[key, n] = $5 + $6
    if ($7 > peak[key]) peak[key] = $7
    if ($2 == "synclave") { our_wall[$1, $3] = $4; our_cpu[$1, $3] = $5 + $6 }
  }
  END {
    printf "%-8s %-13s %8s %8s %5s %9s  %s\n", "case", "tool", "wall s", "CPU s", "runs", "peak MiB", "its wall and CPU time / synclave"
    for (i = 1; i <= count; i++) {
      key = order[i]; split(key, part, " "); n = 0
      for (j = 1; j <= runs[key]; j++) {
        at = part[1] SUBSEP round[key, j]
        if (our_wall[at] > 0) { walls[++n] = wall[key, j] / our_wall[at]; cpus[n] = our_cpu[at] > 0 ? cpu[key, j] / our_cpu[at] : 0 }
      }
      printf "%-8s %-13s %8.2f %8.2f %5d %9.1f", part[1], part[2], middle(wall, key), middle(cpu, key), runs[key], peak[key] / 1024
      if (n) printf "  %.2f %.2f", median(walls, n), median(cpus, n)
      print ""
    }
  }' "$results"
