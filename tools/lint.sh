#!/usr/bin/env bash
# tools/lint.sh [FILE.cc…]: formatting and static checks of the whole tree (or clang-tidy on the named sources alone).
# Wants build/release configured, for the compile commands. Runs every check, says what it skipped, and fails at the
# end if one of them found something.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
jobs=${JOBS:-$(nproc)}
PATH=$PATH:$HOME/.cargo/bin
failed=()

check() {  # name, command…
  local name=$1 start=$SECONDS
  shift
  if "$@"; then
    echo "lint: $name: clean ($(( SECONDS - start )) s)"
  else
    echo "lint: $name: FAILED" >&2
    failed+=("$name")
  fi
}
skip() { echo "lint: $1: skipped, $2"; }
files() { git ls-files --cached --others --exclude-standard -- "$@"; }

format() { files 'src/*.cc' 'src/*.h' 'src/*.cu' 'src/*.cuh' 'tests/*.cc' 'tests/*.h' 'bench/*.cc' 'rust/*.h' |
           xargs -r -d '\n' clang-format-19 --dry-run -Werror; }

# One process a file, so that both cores work to the end; output only of files with findings.
tidy_one() {
  local out
  out=$(clang-tidy-19 -p build/release --quiet "$1" 2>/dev/null) || { printf '%s\n' "$out"; return 1; }
}
export -f tidy_one
# shellcheck disable=SC2016  # "$1" is for the inner shell
tidy() { printf '%s\n' "$@" | xargs -r -d '\n' -n 1 -P "$jobs" bash -c 'tidy_one "$1"' tidy; }

# Sources that the release build compiles; what another preset alone compiles has no flags here.
compiled_sources() { sed -n "s|^ *\"file\": \"$PWD/\(src/.*\.cc\)\".*|\1|p" build/release/compile_commands.json | sort -u; }

if (( $# )); then
  check clang-tidy tidy "$@"
else
  check clang-format format
  mapfile -t sources < <(compiled_sources)
  check "clang-tidy (${#sources[@]} sources)" tidy "${sources[@]}"
  if command -v shellcheck >/dev/null; then
    mapfile -t scripts < <(files '*.sh' .ci/run)
    check shellcheck shellcheck "${scripts[@]}"
  else
    skip shellcheck "not installed"
  fi
  if [ ! -f rust/textkit/Cargo.toml ]; then
    skip cargo "there is no rust/textkit"
  else
    export CARGO_TARGET_DIR=$PWD/build/cargo
    if command -v cargo-fmt >/dev/null; then check "cargo fmt" cargo fmt --check --manifest-path rust/textkit/Cargo.toml
    else skip "cargo fmt" "not installed"; fi
    if command -v cargo-clippy >/dev/null
    then check "cargo clippy" cargo clippy --quiet --locked --manifest-path rust/textkit/Cargo.toml -- -D warnings
    else skip "cargo clippy" "not installed"; fi
  fi
fi

(( ${#failed[@]} == 0 )) || { echo "lint: failed: ${failed[*]}" >&2; exit 1; }
