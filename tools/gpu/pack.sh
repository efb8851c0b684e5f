#!/usr/bin/env bash
# tools/gpu/pack.sh [BUILD [OUT]]: puts what a GPU machine needs into OUT (build/gpu): the stripped programs of BUILD
# (build/cuda, made by `make cuda`). Carry it there together with a checkout, and run tools/gpu/run.sh.
# The programs need libc and the NVIDIA driver, nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/cuda}
out=${2:-build/gpu}
programs=(jewel tests/cuda/cuda_test tests/cuda/cuda_golden_test tests/cuda/cuda_demo_test bench/cuda_decode bench/cuda_step)

mkdir -p "$out"
for program in "${programs[@]}"; do
  if [ ! -x "$build/$program" ]; then
    echo "pack: $build/$program is missing; run 'make cuda' first" >&2
    exit 1
  fi
  strip -o "$out/$(basename "$program")" "$build/$program"
  needs=$(objdump -p "$out/$(basename "$program")" | sed -n 's/^ *NEEDED *//p' | grep -Ev '^(libc|libm|libdl|libpthread|librt|ld-linux-x86-64)\.so' || true)
  if [ -n "$needs" ]; then
    echo "pack: $program needs $needs, which a GPU machine may lack" >&2
    exit 1
  fi
done
du -ch "$out"/* | sed 's/^/pack: /'
