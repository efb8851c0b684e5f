#!/usr/bin/env bash
# tests/fuzz/run.sh BUILD_FOLDER SECONDS: runs every fuzz target that was built there, first over its committed corpus
# (seeds and past findings), then on new inputs for SECONDS, those nearest to foreign hands for twice as long. JOBS
# targets run at a time. What was found interesting stays in BUILD_FOLDER/corpus for the next run; an input that breaks
# something lands in BUILD_FOLDER/findings.
set -euo pipefail
build=$(cd "$1" && pwd)
seconds=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$build/findings"

fuzz_one() {  # the program; a line of result, or the end of its log
  local program=$1 name=${1##*/fuzz_} log start=$SECONDS
  log=$build/$name.log
  local corpus=$build/corpus/$name dictionary=()
  mkdir -p "$corpus"
  local time=$seconds
  case $name in http_body | data_url | serve_config | output_parser) time=$(( 2 * seconds )) ;; esac
  if [ -e "$here/$name.dict" ]; then dictionary=("-dict=$here/$name.dict"); fi
  # An input may take 10 s and 1 GiB: a small file that asks for more is a finding even when nothing else is wrong.
  local limits=(-timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=1024 "-artifact_prefix=$build/findings/$name-")
  if "$program" "${limits[@]}" -runs=0 "$here/corpus/$name" >"$log" 2>&1 &&
     "$program" "${limits[@]}" "${dictionary[@]}" -max_len="${MAX_LEN:-65536}" -max_total_time="$time" \
       -print_final_stats=1 "$corpus" "$here/corpus/$name" >>"$log" 2>&1; then
    printf 'fuzz: %-12s %9s inputs in %3d s, %s points covered\n' "$name" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)" $(( SECONDS - start )) \
      "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)"
  else
    tail -n 40 "$log" >&2
    echo "fuzz: $name: FAILED. Again: $program FILE, with the file in $build/findings; once mended, add it to tests/fuzz/corpus/$name" >&2
    return 1
  fi
}
export -f fuzz_one
export build seconds here

programs=("$build"/tests/fuzz/fuzz_*)
[ -x "${programs[0]}" ] || { echo "fuzz: no targets in $build/tests/fuzz; build the target 'fuzzers' first" >&2; exit 1; }
# shellcheck disable=SC2016  # "$1" is for the inner shell
printf '%s\n' "${programs[@]}" | xargs -d '\n' -n 1 -P "${JOBS:-1}" bash -c 'set -euo pipefail; fuzz_one "$1"' fuzz
