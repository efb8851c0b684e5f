#!/bin/sh
# no_shared_symbols.sh NM LIBRARY: fails when an object kernels_<isa>.cc.o of LIBRARY defines a weak or unexpected symbol.
set -eu
found=$("$1" -C "$2" | awk '
  /\.o:$/ { object = $1; next }
  object ~ /kernels_(portable|avx2|avx512_bf16)\.cc\.o:/ && $2 ~ /[A-Z]/ && $2 != "U" {
    if ($2 == "T" && $0 ~ /_kernels\(\)$/) tables++
    else print object, $0
  }
  END { print "tables", tables }')
if [ "$found" != "tables 3" ]; then
  echo "expected three tables and nothing else, found:"
  echo "$found"
  exit 1
fi
