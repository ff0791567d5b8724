#!/usr/bin/env bash
# `synclave sync` on a big real tree, judged by other tools than its own: diff, find and stat.
#
#   tests/real_trees.sh [SYNCLAVE]         default: target/release/synclave
#
# Environment: SOURCE (~/.cargo/registry/src: what the tree is made of), FILES (29,000: it is copied, each copy with contents
# of its own, until there are so many), WORK (a directory; default: a new one in the current directory, removed at the end).
# `cargo test --test trees` does the same with small trees, and more. This needs root or a user of its own, jq, and room for
# four times the tree.
set -euo pipefail

synclave=$(realpath "${1:-target/release/synclave}")
source=${SOURCE:-$HOME/.cargo/registry/src}
files=${FILES:-29000}
work=${WORK:-$(mktemp -d "$PWD/real-trees.XXXXXX")}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# in_sync A B [OPTION…]: one sync, which must end in sync; its counters in updates, bytes and conflicts.
in_sync() {
  local began=$EPOCHREALTIME sums
  "$synclave" sync "$@" --data-dir "$work/state" --output json >"$work/answer" 2>"$work/log" ||
    fail "sync $*: exit code $?: $(tail -n 3 "$work/log")"
  jq -e '.operation.state == "OPERATION_STATE_IN_SYNC"' "$work/answer" >/dev/null || fail "sync $*: not in sync"
  sums=$(jq -r '[.syncInfos[].dfsrSyncInfo] | def sum(f): map(f | tonumber) | add;
    "\(sum(.updatesTransferred)) \(sum(.bytesTransferred)) \(sum(.conflictsGenerated))"' "$work/answer")
  read -r updates bytes conflicts <<<"$sums"
  printf '  sync %s %s: %s updates, %s bytes, %s conflicts, %.1f s\n' "$(basename "$1")" "$(basename "$2")" \
    "$updates" "$bytes" "$conflicts" "$(bc <<<"$EPOCHREALTIME - $began")"
}

# Whatever is carried of each entry but content: kind, mode of all but symlinks, mtime and size of files.
listing() {
  find "$1" -path "$1/.synclave" -prune -o \( -type d -printf 'd %m %P\0' , -type f -printf 'f %m %T@ %s %P\0' , \
    -type l -printf 'l %l %P\0' \) | LC_ALL=C sort -z
}

# FIFOs are not carried; all else is the same on both sides.
equal() {
  local a=$1 b=$2
  diff -r --no-dereference --exclude=.synclave "$a" "$b" >"$work/diff" 2>&1 || true
  grep -Ev '^(Only in .*: fifo|File .*/fifo is a fifo while .*)$' "$work/diff" >"$work/differences" || true
  [ ! -s "$work/differences" ] || fail "diff -r: $(head -n 5 "$work/differences")"
  cmp <(listing "$a") <(listing "$b") || fail "modes, times, sizes or targets differ"
  printf '  %s and %s are equal: diff -r, %s modes, %s mtimes\n' "$(basename "$a")" "$(basename "$b")" \
    "$(listing "$a" | grep -zc '^[df]')" "$(listing "$a" | grep -zc '^f')"
}

quiet() {
  in_sync "$1" "$2"
  [ "$updates $bytes $conflicts" = '0 0 0' ] || fail "a run without a change moved something"
}

equal_copy() {
  in_sync "$1" "$2"
  [ "$bytes $conflicts" = '0 0' ] || fail "a copy of the same content moved bytes or was a conflict"
  equal "$1" "$2"
  quiet "$1" "$2"
}

add_oddities() {
  local odd=$1/odd long
  mkdir -p "$odd/empty/empty" "$odd/private"
  chmod 700 "$odd/private"
  echo inside >"$odd/target"
  ln -s target "$odd/link in"
  ln -s ../../outside "$odd/link out"
  ln -s /etc/hostname "$odd/absolute link"
  ln -s nowhere "$odd/dangling"
  ln -s loop "$odd/loop"
  ln -s $'not \xff utf-8' "$odd/link to non-utf-8"
  for name in ' leading and trailing ' -rf -- '*?[a-z]{x,y}' "\"quoted\" 'twice' \$HOME" 'back\slash' $'line\nfeed' $'tab\tand\x01' \
    ... ..strange .hidden Case case $'composed \u00e9' $'decomposed e\u0301' $'not \xff\xfe utf-8 \x80'; do
    echo "content of $name" >"$odd/$name"
  done
  long=$(printf '%0255d' 0)
  echo long >"$odd/${long//0/n}"
  echo long >"$odd/${long//0/$'\xfe'}"
  : >"$odd/zero bytes"
  echo r >"$odd/read-only"
  chmod 444 "$odd/read-only"
  echo x >"$odd/executable"
  chmod 755 "$odd/executable"
  echo old >"$odd/before 1970"
  touch -d '1969-12-31 12:00:00.999999999Z' "$odd/before 1970"
  echo 'a file' >"$odd/file, then directory"
  mkfifo "$odd/fifo"
}

echo "making a tree of $files files in $work"
mkdir "$work/A"
copy=0 have=0
while [ "$have" -lt "$files" ]; do
  copy=$((copy + 1))
  cp -a "$source" "$work/A/copy$copy"
  [ "$copy" = 1 ] || find "$work/A/copy$copy" -type f -print0 |
    COPY=$copy xargs -0 -n 1000 sh -c 'for file; do chmod u+w "$file"; echo "$COPY $file" >> "$file"; done' sh
  have=$(find "$work/A" -type f | wc -l)
done
add_oddities "$work/A"
a=$work/A b=$work/B
echo "  $(find "$a" -type f | wc -l) files, $(find "$a" -mindepth 1 | wc -l) entries, $(du -sm --apparent-size "$a" | cut -f1) MiB"

echo 'against an empty directory'
in_sync "$a" "$b"
[ "$updates" = "$(find "$a" -path "$a/.synclave" -prune -o -mindepth 1 ! -type p -print0 | grep -zc .)" ] ||
  fail "not one update for each entry"
equal "$a" "$b"
quiet "$a" "$b"

echo 'both ways with edits, deletes, renames and changes of kind'
# In A the odd copies are changed, in B the even ones, so that nothing is changed on both sides.
# every SIDE N OF COMMAND…: the n-th of every so many regular files of that side.
every() {
  local nth=$2 of=$3
  own "$1" -type f -print0 | LC_ALL=C sort -z | sed -zn "$nth~${of}p" | xargs -0 -n 500 sh -c "$4" sh
}
own() {
  if [ "$1" = A ]; then find "$a"/copy*[13579]* "${@:2}"; else find "$b"/copy*[02468]* "${@:2}"; fi
}
every A 1 97 'for file; do chmod u+w "$file"; echo edited in A >> "$file"; done'
every B 2 97 'for file; do chmod u+w "$file"; echo edited in B >> "$file"; done'
every A 3 101 'rm -f -- "$@"'
every B 4 101 'for file; do mv "$file" "$file.renamed in B"; done'
every A 5 199 'for file; do rm -f "$file"; mkdir "$file"; echo inside > "$file/inside"; done'
every B 6 199 'for file; do rm -f "$file"; ln -s elsewhere "$file"; done'
every A 7 203 'chmod 750 "$@"'
every B 8 203 'touch -d "2009-02-13 23:31:30.987654321Z" "$@"'
mv "$a/copy1" "$a/copy1, renamed in A"
rm "$b/odd/file, then directory"
mkdir "$b/odd/file, then directory"
echo 'in the directory' >"$b/odd/file, then directory/file"
changed() { (cd "$1" && listing . | grep -z " copy[^/]*[$2]"); }
changed "$a" 13579 >"$work/changed in A"
changed "$b" 02468 >"$work/changed in B"
in_sync "$a" "$b"
[ "$conflicts" = 0 ] || fail "nothing was changed on both sides, and $conflicts conflicts met"
[ "$updates" -gt 0 ] || fail "nothing moved"
equal "$a" "$b"
cmp "$work/changed in A" <(changed "$b" 13579) || fail "what was changed in A did not come to B as it was"
cmp "$work/changed in B" <(changed "$a" 02468) || fail "what was changed in B did not come to A as it was"
quiet "$a" "$b"
rm -r "$a/odd/file, then directory"
echo 'a file again' >"$a/odd/file, then directory"
in_sync "$a" "$b"
equal "$a" "$b"
[ "$(cat "$b/odd/file, then directory")" = 'a file again' ] || fail "a directory did not become a file"

echo 'cp -a first, without the state, then with it'
cp -a "$a" "$work/C"
rm -r "$work/C/.synclave"
equal_copy "$a" "$work/C"
rm -r "$work/C"
cp -a "$a" "$work/D"
[ -d "$work/D/.synclave" ] || fail "the state was not copied"
equal_copy "$a" "$work/D"

echo 'edits on both sides keep both'
find "$a" -path "$a/.synclave" -prune -o -name Cargo.toml -type f -printf '%P\0' | LC_ALL=C sort -z | head -zn 100 >"$work/edited"
while IFS= read -rd '' file; do
  echo "# edited in A: $file" >>"$a/$file"
  echo "# edited in B: $file" >>"$b/$file"
  touch -d '2026-01-01 00:00:00Z' "$a/$file"
  touch -d '2026-01-01 00:01:00Z' "$b/$file"
done <"$work/edited"
in_sync "$a" "$b"
[ "$conflicts" -ge 100 ] || fail "100 files were edited on both sides, and $conflicts conflicts met"
equal "$a" "$b"
while IFS= read -rd '' file; do
  [ "$(tail -n 1 "$a/$file")" = "# edited in B: $file" ] || fail "$file: the later edit is not in its place"
  kept=("$a/${file%.toml}".conflict-20260101-000000-*.toml)
  [ "${#kept[@]} $(tail -n 1 "${kept[0]}")" = "1 # edited in A: $file" ] || fail "$file: the earlier edit is not kept once"
done <"$work/edited"
echo '  each edit is there: 100 in their places, 100 beside them'
quiet "$a" "$b"
echo passed
