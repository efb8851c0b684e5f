#!/usr/bin/env bash
# tools/gpu/run.sh [--programs DIR] [--only STEP,…] [--limit SECONDS] [--json FILE]
#
# Everything that needs a GPU, on a machine without network, from a checkout and the programs that tools/gpu/pack.sh
# collected (DIR, build/gpu). Prints a table and writes one JSON; exit code 3 when something failed. Steps:
#
#   backend     the CUDA backend against the CPU's; bitwise equality across batches and chunks
#   goldens     stages and logits against Transformers, models of E4B's and E2B's widths
#   demo        the demo model's 224 answers against Transformers', alone and together, chunked, from the prefix cache
#   memcheck    compute-sanitizer: addresses
#   racecheck   compute-sanitizer: shared memory; what is known of two kernels is shown, whatever else it finds fails
#   answer      the program itself: a picture and a question
#   stages      the decode step of E4B's shapes: its kernels against float64 and each other, bit by bit, each beside the
#               time that its bytes need, and the whole of it at 1 to 128 rows (bench/cuda_decode.cu, a minute)
#   steps       whole steps with sampling, prompts, images and joules (bench/cuda_step.cc, three minutes and 20 GB of
#               memory; figures with their ceilings in build/gpu/steps.json)
#   idle        watts of a server that waits and joules of a request a minute, with the device kept and given back
#               (bench/idle_release.py, 5 minutes, wants python3 and the card to itself; figures in build/gpu/idle.json)
#   books       joules told to answers, and of rest, against the card's counter (bench/energy_books.py, a minute and a
#               half, the same wants; figures in build/gpu/books.json)
#
# A step that is skipped because no device was found counts as a failure.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
programs=build/gpu
only=backend,goldens,demo,memcheck,racecheck,answer,stages,steps,idle,books
limit=600
json=build/gpu/result.json
while (( $# )); do
  case $1 in
    --programs) programs=$2 ;;
    --only) only=$2 ;;
    --limit) limit=$2 ;;
    --json) json=$2 ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
export JEWEL_REQUIRE_CUDA=1
logs=$(mktemp -d "${TMPDIR:-/tmp}/jewel-gpu.XXXXXX")
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
failed=0
rows=()

# The sanitizer slows a kernel hundredfold: one mode of the small model, every kind of step.
sanitized='*ChunksDoNotMatter/fp8:*NeighboursDoNotMatter/fp8:*Images/fp8:*MasksAndSteps/fp8:*TogetherAsAlone/fp8'

run_step() {  # name, command…
  local name=$1 start status result seconds
  shift
  [[ ,$only, == *,$name,* ]] || return 0
  start=$(date +%s.%N)
  timeout "$limit" "$@" >"$logs/$name" 2>&1
  status=$?
  seconds=$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
  result=ok
  if (( status == 124 )); then result="stopped after $limit s"; elif (( status )); then result="failed ($status)"; fi
  # What a test printed of its figures; all of it where it failed.
  grep -hE '^(distance|figure |missed: |[0-9]+ failures|read rate|step rows|rows [0-9]+,|[a-zA-Z0-9+ -]{20} +[0-9.]+ +[0-9.]+ +-?[0-9.]+$|.{50,} (ms|s|tok/s|J/token|GB|TB/s|%)[ ,]|[a-z0-9]+ [a-z]+: logits|[a-z0-9]+: [0-9]+ stages|KV |[0-9]+ of |=+ ERROR SUMMARY|=+ RACECHECK)' "$logs/$name"
  if (( status )); then failed=1; grep -hE 'Failure|FAILED|^CUDA:|error|ERROR|Expected|actual|Which|=====' "$logs/$name" | tail -n 60; fi
  rows+=("$(printf '%-10s %-24s %7s s' "$name" "$result" "$seconds")")
  figures+=("{\"name\": \"$name\", \"value\": $seconds, \"unit\": \"s\", \"passed\": $([ "$result" = ok ] && echo true || echo false)}")
}

figures=()
run_step backend "$programs/cuda_test" --gtest_brief=1
run_step goldens "$programs/cuda_golden_test" --gtest_brief=1
run_step demo "$programs/cuda_demo_test" --gtest_brief=1
if [ -n "$sanitizer" ]; then
  run_step memcheck "$sanitizer" --tool memcheck --error-exitcode 9 "$programs/cuda_test" --gtest_filter="$sanitized"
  # Two kernels are known, what the tool says of any other fails. few_rows_kernel's first thread starts a barrier, by the
  # uniform datapath, and arrives at it; the tool takes that for two threads. The two teams of decode attention at
  # head_dim 256 meet at named barriers of their own, not equally often, and then all at __syncthreads(): of that
  # the tool makes an error in a program of ten lines that does nothing else (docs/cuda.md).
  races() {
    local seen
    seen=$("$sanitizer" --tool racecheck "$programs/cuda_test" --gtest_filter='*MasksAndSteps/fp8:*Images/fp8' 2>&1)
    local status=$?
    echo "$seen"
    (( status == 0 )) && grep -q 'RACECHECK SUMMARY' <<<"$seen" &&
      ! grep -E '(Read|Write) access at' <<<"$seen" |
        grep -qvE 'few_rows_kernel|decode_attention_kernel<[^>]*RunShape<\(int\)256'
  }
  export sanitizer programs
  export -f races
  run_step racecheck bash -c races
elif [[ ,$only, == *check,* ]]; then
  echo "gpu: compute-sanitizer is not on this machine: memcheck and racecheck did not run" >&2
  failed=1
fi
answers() {
  local answer
  answer=$("$programs/jewel" run models/jewel-demo --device cuda --temperature 0 --image models/examples/word.png \
    'What word is in the picture?') || return
  echo "answer: $answer"
  [[ ${answer,,} == *violin* ]]
}
export programs
export -f answers
run_step answer bash -c answers
mkdir -p build/gpu
# Beyond 512 keys full layers have a second piece, and other kernels: their bits are compared too.
stages() {
  "$programs/cuda_decode" check && "$programs/cuda_decode" time 1,2,4,8,16,32,64,100,128 &&
    "$programs/cuda_decode" time 1,8,32 --keys 600 && "$programs/cuda_decode" kinds 1,8,32,100
}
export -f stages
run_step stages bash -c stages
run_step steps "$programs/cuda_step" --joules 5 --json build/gpu/steps.json
run_step idle python3 bench/idle_release.py --jewel "$programs/jewel" --device cuda --requests 2 --json build/gpu/idle.json
run_step books python3 bench/energy_books.py --jewel "$programs/jewel" --device cuda --json build/gpu/books.json

printf '\n%s\n' "${device:-no NVIDIA device}"
printf '%s\n' "${rows[@]}"
mkdir -p "$(dirname "$json")"
{
  printf '{"what": "correctness on a GPU", "date": "%s", "version": "%s",\n' "$(date -u +%F)" "$(git describe --always --dirty 2>/dev/null || echo unknown)"
  printf ' "machine": "%s", "settings": {"steps": "%s"}, "ceilings": {},\n "figures": [\n  ' "$device" "$only"
  (IFS=$'\n'; printf '%s' "${figures[*]}" | sed '2,$s/^/  /; $!s/$/,/')
  printf '\n]}\n'
} >"$json"
rm -rf "$logs"
(( failed == 0 )) || exit 3
