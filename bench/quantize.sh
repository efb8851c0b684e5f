#!/bin/bash
# bench/quantize.sh SRC [SCRATCH]: how fast `jewel quantize` reads a BF16 checkpoint, next to its ceiling: `cp` of the same weights on
# the same disk, flushed, in the same run. Order A-B-B-A, so that what drifts falls on both. Prints one JSON result.
set -eu
source=$1
scratch=$(mktemp -d "${2:-/tmp}/jewel-bench-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
jewel=${JEWEL:-build/release/jewel}
bytes=$(du -cbL "$source"/*.safetensors | tail -n 1 | cut -f 1)

seconds() { local start end; start=$(date +%s.%N); "$@" >&2; end=$(date +%s.%N); echo "$end - $start" | bc -l; }
copy() { mkdir "$scratch/copy"; cp "$source"/*.safetensors "$scratch/copy"; sync "$scratch"/copy/*; }
quantize() { "$jewel" quantize "$source" "$scratch/fp8" --drop-unused --no-verify --quiet; }
clean() { rm -rf "$scratch/copy" "$scratch/fp8"; sync -f "$scratch"; }

cat "$source"/*.safetensors >/dev/null  # the same page cache for everyone
a1=$(seconds copy); clean
b1=$(seconds quantize); size=$(du -b "$scratch/fp8/model.safetensors" | cut -f 1); clean
b2=$(seconds quantize); clean
a2=$(seconds copy); clean
rate() { echo "scale=1; 2 * $bytes / 1000000 / ($1 + $2)" | bc -l; }
cat <<JSON
{"what": "jewel quantize, fp8-tensor, without verification", "date": "$(date -u +%F)", "version": "$("$jewel" --version)",
 "machine": "$(nproc) cores, $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1)",
 "settings": {"source_bytes": $bytes, "result_bytes": $size, "order": "copy, quantize, quantize, copy"},
 "ceilings": {"copy_mb_per_s": $(rate "$a1" "$a2")},
 "figures": [{"name": "source read", "value": $(rate "$b1" "$b2"), "unit": "MB/s", "ceiling": $(rate "$a1" "$a2"), "n": 2,
   "seconds": [$b1, $b2], "copy_seconds": [$a1, $a2]}]}
JSON
