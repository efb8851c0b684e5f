# Jewel from the front door. Every target sets up what it needs (tools/setup.sh), configures once, and builds.
# JOBS=n limits the parallel jobs; CI=true never asks for a password.

JOBS ?= $(shell nproc)
JEWEL := build/release/jewel
# Seconds that a fuzz target runs in `make fuzz` and `make check`; four run twice as long.
FUZZ_SECONDS ?= 30
# The tests in which several threads of ours meet; under TSan the others would only be slower.
TSAN_TESTS := base_test backend_test engine_test checkpoint_test api_test hub_test energy_test
# What `make cuda` builds: the rest does not differ from the release build.
CUDA_TARGETS := jewel cuda_test cuda_golden_test cuda_demo_test cuda_step cuda_decode

.DEFAULT_GOAL := help
.PHONY: help setup setup-check setup-clients setup-cuda build run test check asan tsan fuzz clients cuda lint format bench clean check-steps expected-answer
# The parallel work is inside the steps; two of them at once would only fight for cores.
.NOTPARALLEL:

help:  ## this list
	@echo 'make TARGET, where TARGET is'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r t d; do printf '  %-8s %s\n' "$$t" "$$d"; done

setup:  ## install what a build needs (Debian 12; silent when nothing is missing)
	@tools/setup.sh build

setup-check:
	@tools/setup.sh build check
setup-clients:
	@tools/setup.sh build clients
setup-cuda:
	@tools/setup.sh build cuda

# A preset's build folder. Ninja itself re-runs CMake when a CMakeLists.txt changes; this rule is for the first time and
# for a change of the presets.
build/%/build.ninja: CMakePresets.json
	@echo 'configuring build/$*'
	@cmake --preset $* >/dev/null && touch $@
.PRECIOUS: build/%/build.ninja

build: setup build/release/build.ninja  ## the program, at build/release/jewel
	@cmake --build build/release -j $(JOBS) --target jewel >&2

MODEL ?= models/jewel-demo
IMAGE ?= models/examples/word.png
QUESTION ?= What word is in the picture?
# What the answer must contain (.ci/run looks for it): one word that is right or wrong as a whole.
ANSWER ?= violin
SERVE := $(JEWEL) serve $(MODEL) --host 127.0.0.1
ASK := $(JEWEL) run $(MODEL) --temperature 0 --image $(IMAGE)

run: build  ## build, ask the demo model about a bundled picture, then serve it on 127.0.0.1:8000 (ONCE=1: do not serve)
	@echo '$$ $(ASK) "$(QUESTION)"' >&2
	@$(ASK) "$(QUESTION)"
ifndef ONCE
	@echo '$$ $(SERVE)' >&2
	@exec $(SERVE)
endif

test: setup build/release/build.ninja  ## release build and every CPU test
	@cmake --build build/release -j $(JOBS)
	@ctest --preset release -j $(JOBS)

CHECK_STEPS := lint asan tsan fuzz clients cuda
check: $(CHECK_STEPS)  ## what CI adds: lint, sanitizers, fuzzers, the official clients, the CUDA compile

# For .ci/run, which times each step.
check-steps:
	@echo $(CHECK_STEPS)
expected-answer:
	@echo '$(ANSWER)'

asan: setup-check build/asan/build.ninja  ## every test under AddressSanitizer and UBSan
	@cmake --build build/asan -j $(JOBS)
	@ctest --preset asan -j $(JOBS)

empty :=
space := $(empty) $(empty)
tsan: setup-check build/tsan/build.ninja  ## the threaded tests under ThreadSanitizer
	@cmake --build build/tsan -j $(JOBS) --target $(TSAN_TESTS)
	@ctest --preset tsan -j $(JOBS) --no-tests=error -R '^($(subst $(space),|,$(TSAN_TESTS)))$$'

fuzz: setup-check build/asan/build.ninja  ## every fuzz target for FUZZ_SECONDS (30) seconds or twice that
	@cmake --build build/asan -j $(JOBS) --target fuzzers
	@JOBS=$(JOBS) tests/fuzz/run.sh build/asan $(FUZZ_SECONDS)

clients: setup-clients build  ## the official OpenAI and Anthropic clients and schemathesis against jewel serve
	@JEWEL_BINARY=$(JEWEL) build/clients/bin/python -m pytest -q tests/clients

cuda: setup-cuda build/cuda/build.ninja  ## the program with its CUDA backend, at build/cuda/jewel, and the GPU tests (no GPU needed)
	@cmake --build build/cuda -j $(JOBS) --target $(CUDA_TARGETS) >&2
	@build/cuda/tests/cuda/cuda_test --gtest_brief=1

lint: setup-check build/release/build.ninja  ## clang-format, clang-tidy, cargo fmt and clippy, shellcheck
	@JOBS=$(JOBS) tools/lint.sh

format: setup-check  ## rewrite the C++ and Rust sources in the project's format
	@git ls-files 'src/*.cc' 'src/*.h' 'src/*.cu' 'tests/*.cc' 'tests/*.h' 'bench/*.cc' 'rust/*.h' | xargs clang-format-19 -i
	@PATH="$$PATH:$$HOME/.cargo/bin" cargo fmt --manifest-path rust/textkit/Cargo.toml

bench: build  ## CPU speed: kernels next to this machine's ceilings, whole steps, the scheduler, the server, the demo model
	@tools/setup.sh bench
	@cmake --build build/release -j $(JOBS) --target cpu_kernels cpu_step engine_overhead server_load
	@build/release/bench/cpu_kernels
	@build/release/bench/cpu_step
	@build/release/bench/engine_overhead || [ $$? = 3 ]  # 3: the bar was missed, which it says
	@build/release/bench/server_load || [ $$? = 3 ]
	@bench/cold_start.py $(JEWEL) $(MODEL) || [ $$? = 3 ]
	@for i in 1 2 3; do $(ASK) "$(QUESTION)" >/dev/null || exit 1; done

clean:  ## remove everything that was built
	rm -rf build
