#!/bin/bash
# quantize_crash_test.sh JEWEL MODEL: killed at any moment, or on a full disk, `jewel quantize` leaves a complete destination or
# none, and the source as it was.
set -eu
jewel=$1
model=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sum_source() { find "$model" -type f -exec sha256sum {} + | sort | sha256sum; }
before=$(sum_source)

"$jewel" quantize "$model" "$work/whole" --quiet
complete=$(sha256sum <"$work/whole/model.safetensors")

killed=0
finished=0
for i in $(seq 10); do
  rm -rf "$work"/run "$work"/.run.partial-*
  # Moments over the whole of a run, which takes a tenth of a second or two.
  "$jewel" quantize "$model" "$work/run" --quiet & pid=$!
  sleep "0.$(printf %03d $(((i * i * 3 + RANDOM % 20) % 320)))"
  if kill -9 $pid 2>/dev/null; then killed=$((killed + 1)); fi
  wait $pid 2>/dev/null || true
  if [ -e "$work/run" ]; then
    finished=$((finished + 1))
    [ "$(sha256sum <"$work/run/model.safetensors")" = "$complete" ] || { echo "moment $i: an incomplete destination"; exit 1; }
    for file in config.json tokenizer.json README.md; do [ -s "$work/run/$file" ] || { echo "moment $i: $file is missing"; exit 1; }; done
  fi
done
echo "killed $killed of 10, destination complete in $finished"
[ $killed -ge 1 ] || { echo 'no run was killed: the test proves nothing'; exit 1; }

# A disk of 8 MB for a result of 16 MB, in a mount namespace of our own. Root needs no user namespace for it; inside of a chroot it
# gets none, and the root folder's propagation cannot be changed there. A container may forbid all of it: then it is said.
namespace=()
for try in 'unshare -rm' 'unshare -m' 'unshare -m --propagation unchanged'; do
  read -ra words <<<"$try"
  if "${words[@]}" true 2>/dev/null; then namespace=("${words[@]}"); break; fi
done
if [ ${#namespace[@]} = 0 ]; then
  echo 'full disk: NOT TESTED, this machine allows no mount namespace'
  [ "$(sum_source)" = "$before" ] || { echo 'the source was changed'; exit 1; }
  exit 0
fi
# shellcheck disable=SC2016  # $1, $2, $3 are for the inner shell
"${namespace[@]}" bash -c '
  mount -t tmpfs -o size=8m tmpfs "$1" && cd "$1"
  trap "cd /; umount \"$1\"" EXIT
  if "$2" quantize "$3" full 2>message; then echo "a full disk was no error"; exit 1; fi
  grep -q "the disk is full" message || { cat message; exit 1; }
  [ "$(ls -A)" = message ] || { echo "left behind:"; ls -A; exit 1; }
' _ "$(mkdir -p "$work/small" && echo "$work/small")" "$(realpath "$jewel")" "$(realpath "$model")"
echo 'full disk: one clear error, nothing left behind'

[ "$(sum_source)" = "$before" ] || { echo 'the source was changed'; exit 1; }
