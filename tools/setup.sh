#!/usr/bin/env bash
# tools/setup.sh GROUP…: installs what a group of work needs and this machine lacks. Groups:
#
#   build   compile Jewel and run its tests (make build, make run, make test)
#   check   what CI adds: sanitizers, fuzzers, linters (make check, make lint)
#   clients the official OpenAI and Anthropic clients for Python and Node, and schemathesis (make clients), from PyPI and npm
#           into build/clients, 0.4 GB, where `make clean` removes them
#   bench   what the benchmarks need (make bench)
#   cuda    nvcc and the CUDA runtime (make cuda): what stands on this machine, else NVIDIA's wheels from PyPI into
#           build/cuda-toolkit, 0.3 GB, where `make clean` removes them
#
# Each need is a package and a proof: a command on PATH, or a file. Only proofs are looked at, so a second call costs
# milliseconds and prints nothing, and a machine that got its tools in another way is left alone. What is missing is
# installed on Debian 12, as root or through sudo; elsewhere the script names what is missing and stops.
set -euo pipefail

needs() {  # package | proof: 'cmd:NAME', 'inc:HEADER' or 'lib:ARCHIVE' | who needs it
  case $1 in
    build) cat <<'LIST'
clang-19               cmd:clang++-19        the C++ compiler that the presets name; brings libstdc++ 12
lld-19                 cmd:ld.lld-19         the linker
cmake                  cmd:cmake             >= 3.24
ninja-build            cmd:ninja
ccache                 cmd:ccache            rebuilds after a branch switch or make clean
libboost1.81-dev       inc:boost/config.hpp  headers of Boost.JSON
libboost-json1.81-dev  lib:libboost_json.a   src/model, src/checkpoint, src/text: reading JSON
libfmt-dev             inc:fmt/core.h        messages everywhere
libspdlog-dev          inc:spdlog/spdlog.h   src/base/log
libcli11-dev           inc:CLI/CLI.hpp       src/cli: flags
libcurl4-openssl-dev   inc:curl/curl.h       src/hub: downloads (opened at run time)
libssl-dev             lib:libcrypto.a       SHA-256 of prefixes and downloads; TLS
libyaml-cpp-dev        lib:libyaml-cpp.a     src/server: --config files
libjpeg62-turbo-dev    lib:libjpeg.a         src/image: JPEG
libgtest-dev           lib:libgtest.a        tests
libgmock-dev           lib:libgmock.a        tests
ca-certificates        etc:ssl/certs/ca-certificates.crt  cargo fetches textkit's crates over https
gcc                    cmd:cc                the linker driver that cargo calls
LIST
      # textkit's crates want Rust 1.88; Debian's own cargo is 1.63, its cargo-web is new enough.
      if ! rust_is_new_enough; then
        echo "rustc-web              missing:              rust/textkit: tokenizers, chat templates, image formats"
        echo "cargo-web              missing:              rust/textkit"
      fi ;;
    check) cat <<'LIST'
clang-format-19        cmd:clang-format-19
clang-tidy-19          cmd:clang-tidy-19
libclang-rt-19-dev     rt:libclang_rt.fuzzer  ASan, UBSan, TSan and libFuzzer's runtimes
llvm-19                cmd:llvm-symbolizer-19  names in sanitizer reports
shellcheck             cmd:shellcheck        lint of the shell scripts
LIST
      # Beside cargo-web these are Debian packages; a rustup toolchain brings its own, or lint says that it skips them.
      if [ ! -x "$HOME/.cargo/bin/cargo" ]; then
        echo "rust-web-clippy        cmd:cargo-clippy      lint of rust/textkit"
        echo "rustfmt-web            cmd:cargo-fmt         lint of rust/textkit"
      fi ;;
    clients) cat <<'LIST'
python3-venv           py:ensurepip          the virtual environment in build/clients
curl                   cmd:curl              examples/curl.sh, and the call that a model card shows
LIST
      ;;
    bench) ;;  # the benchmarks run the program itself and need nothing more than its build
    cuda) # wheels go into a virtual environment, and Debian keeps pip for one in a package of its own
      if [ -z "$(find_nvcc)" ]; then echo "python3-venv           py:ensurepip          NVIDIA's wheels"; fi ;;
    *) echo "setup: unknown group '$1'; groups are build, check, clients, bench and cuda" >&2; exit 2 ;;
  esac
}

rust_is_new_enough() {
  local cargo version
  # The same order as cmake/textkit.cmake: ~/.cargo/bin first, then PATH.
  if [ -x "$HOME/.cargo/bin/cargo" ]; then cargo=$HOME/.cargo/bin/cargo; else cargo=$(command -v cargo) || return 1; fi
  version=$("$cargo" --version 2>/dev/null) || return 1
  [[ $version =~ ^cargo\ ([0-9]+)\.([0-9]+) ]] || return 1
  (( BASH_REMATCH[1] > 1 || BASH_REMATCH[2] >= 88 ))
}

# The same order as cmake/cuda.cmake: a toolkit of this machine's first, then the wheels'.
toolkit=$(dirname "$0")/../build/cuda-toolkit
find_nvcc() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" /usr/local/cuda/bin/nvcc \
              "$toolkit"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
    if [ -n "$nvcc" ] && [ -x "$nvcc" ]; then echo "$nvcc"; return; fi
  done
}

# Wheels hold libraries by their versioned names, in lib/; compilers look for lib64/ and libX.so.
install_cuda_wheels() {
  local log root library start=$SECONDS
  log=$(mktemp "${TMPDIR:-/tmp}/jewel-setup.XXXXXX")
  echo "setup: no CUDA toolkit on this machine; NVIDIA's wheels go into build/cuda-toolkit" >&2
  # One call: pip resolves the parts together, and a second one would replace files that they share.
  if ! { rm -rf "$toolkit" && python3 -m venv "$toolkit" &&
         "$toolkit/bin/pip" install -q --disable-pip-version-check --retries 3 \
           'cuda-toolkit[nvcc,cudart,cccl,crt,nvvm,culibos,nvml]==13.0.3.0'; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$toolkit"
    echo "setup: the CUDA toolkit could not be installed (whole log: $log); put nvcc 13.0 or newer on PATH, or set CUDA_HOME" >&2
    exit 1
  fi
  rm -f "$log"
  root=$(echo "$toolkit"/lib/python3*/site-packages/nvidia/cu13)
  ln -sfn lib "$root/lib64"
  for library in "$root"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
  done
  echo "setup: nvcc ready in $(( SECONDS - start )) s" >&2
}

# Node comes as a wheel too: the newest release of OpenAI's client that runs on Node 20 has no dependencies of its own.
node_openai=openai@6.49.0
clients=$(dirname "$0")/../build/clients
client_versions() { echo "$node_openai"; cat "$(dirname "$0")/../tests/clients/requirements.txt"; }
install_clients() {
  local log start=$SECONDS
  if [ -e "$clients/versions" ] && client_versions | cmp -s - "$clients/versions"; then return; fi
  log=$(mktemp "${TMPDIR:-/tmp}/jewel-setup.XXXXXX")
  echo "setup: the clients that the server is tested with go into build/clients" >&2
  if ! { rm -rf "$clients" && python3 -m venv "$clients" &&
         "$clients/bin/pip" install -q --disable-pip-version-check --retries 3 --no-compile --no-deps \
           -r "$(dirname "$0")/../tests/clients/requirements.txt" &&
         PATH="$clients/bin:$PATH" "$clients/bin/npm" install --prefix "$clients" --no-save --no-audit --no-fund \
           --omit=peer --omit=optional "$node_openai"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$clients"
    echo "setup: the clients could not be installed (whole log: $log); PyPI and the npm registry must be reachable" >&2
    exit 1
  fi
  rm -f "$log"
  client_versions >"$clients/versions"
  echo "setup: clients ready in $(( SECONDS - start )) s" >&2
}

# True when the proof holds. Files are looked for where Debian and hand-made installations put them.
proven() {
  local name=${1#*:} file
  case $1 in
    cmd:*) command -v "$name" >/dev/null && return ;;
    inc:*) for file in /usr/include/"$name" /usr/include/*-linux-gnu/"$name" /usr/local/include/"$name"; do [ -e "$file" ] && return; done ;;
    lib:*) for file in /usr/lib/*-linux-gnu/"$name" /usr/lib/"$name" /usr/lib64/"$name" /usr/local/lib*/"$name"; do
             [ -e "$file" ] && return
           done ;;
    rt:*)  for file in /usr/lib/llvm-19/lib/clang/19/lib/*/"$name"*; do [ -e "$file" ] && return; done ;;
    etc:*) [ -e "/etc/$name" ] && return ;;
    py:*)  python3 -c "import $name" 2>/dev/null && return ;;
  esac
  return 1
}

missing=()
for group in "$@"; do
  list=$(needs "$group")
  while read -r package proof _; do
    if [ -n "$package" ] && ! proven "$proof"; then missing+=("$package"); fi
  done <<<"$list"
done
finish() {  # what is no package
  case " $* " in *' cuda '*) if [ -z "$(find_nvcc)" ]; then install_cuda_wheels; fi ;; esac
  case " $* " in *' clients '*) install_clients ;; esac
}
if (( ! ${#missing[@]} )); then
  finish "$@"
  exit 0
fi

by_hand() {
  echo "setup: $1" >&2
  echo "setup: still missing: ${missing[*]}" >&2
  echo "setup: (names of Debian 12 packages; tools/setup.sh says what each is for)" >&2
  exit 1
}

# shellcheck disable=SC1091
os=$(. /etc/os-release 2>/dev/null && echo "${ID:-unknown} ${VERSION_ID:-}" || echo unknown)
[ "$os" = "debian 12" ] || by_hand "this is '$os', and only Debian 12 is set up automatically; please install what is missing by hand"

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || by_hand "not root and no sudo here; please run tools/setup.sh $* as root, or install by hand"
  as_root=(sudo)
  if [ "${CI:-}" = true ]; then as_root+=(-n); fi
fi

# --no-remove: if something of the user's stands in the way (Debian's own cargo, Boost 1.74), stop and say so.
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
log=$(mktemp "${TMPDIR:-/tmp}/jewel-setup.XXXXXX")
start=$SECONDS
echo "setup: installing for $*: ${missing[*]}" >&2
if ! { "${as_root[@]}" "${apt[@]}" update &&
       "${as_root[@]}" "${apt[@]}" install --no-install-recommends --no-remove "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  by_hand "apt-get failed (whole log: $log); if it wanted to remove packages of yours, install by hand with: apt-get install ${missing[*]}"
fi
rm -f "$log"
echo "setup: done in $(( SECONDS - start )) s" >&2
finish "$@"
