# Each target installs its own dependencies first, so every target works on a fresh Debian 12.

export PATH := $(HOME)/.cargo/bin:$(PATH)
# Everything is built in one profile, so that dependencies are compiled once. `make demo PROFILE=release` runs a few
# percent faster and builds several minutes longer.
PROFILE ?= dev
CARGO := cargo
# The tested packages, including the GPU kernels. Always built together, so that dependencies have the same features
# and are compiled once.
TESTED := --locked --workspace --features nnunet-dist/nccl

.PHONY: help demo check test test-cluster docs docs-test chaos kills fuzz fuzz-coverage test-gpu gpu-pack bench deb install sbom \
	deny setup fmt doc

help:
	@echo 'make demo   generate a dataset, train on it with two processes, print its Dice'
	@echo 'make check  format, lints and unit tests of the crates that differ from main; BASE= another commit'
	@echo 'make test   run everything a change must pass'
	@echo 'make test-cluster   run all tests on several hosts: lost ranks, hosts and links, Slurm (as root)'
	@echo 'make docs-test   run every command of the book; PAGE=serve selects pages'
	@echo 'make docs   regenerate the pages that are generated from help texts'
	@echo 'make chaos  train for half an hour with killed ranks, frozen hosts, cut links and full disks (as root); SECONDS=, SEED='
	@echo 'make kills  kill twelve commands at 20 moments each and run them again; MOMENTS='
	@echo 'make fuzz   read mutated files of every kind, ten minutes each; SECONDS='
	@echo 'make fuzz-coverage   the same, guided by coverage (nightly Rust); SECONDS=, TARGET='
	@echo 'make bench  compare with nnU-Net in PyTorch on this machine; BENCH=step_f32 selects rows'
	@echo 'make test-gpu   test the GPU kernels on software Vulkan (Mesa)'
	@echo 'make gpu-pack   pack tests and benchmarks for a GPU machine: dist/gpu-pack.tar.xz'
	@echo 'make deb    build dist/nnunet-dist_VERSION_ARCH.deb; BIN= folder of an existing build, FEATURES=cuda'
	@echo 'make install   install programs, manual, completions, presets and scripts below PREFIX (/usr/local); BIN=, FEATURES='
	@echo 'make sbom   write dist/nnunet-dist.cdx.json: all crates in the programs with version, license and checksum'
	@echo 'make deny   check licenses, sources and known vulnerabilities of all crates; offline: CHECK="licenses bans sources"'
	@echo 'make setup  install build dependencies (as root with apt-get; otherwise print the command)'
	@echo 'make fmt    format the code'
	@echo 'make doc    build the API documentation, and the book if mdbook is installed'

demo: setup
	$(CARGO) run --locked --profile $(PROFILE) --bin nnunet-dist -- demo --dir demo

# BASE= compares with another commit than the one where the branch left main.
check: setup
	@scripts/setup nextest
	CARGO=$(CARGO) scripts/check $(BASE)

# Tests append a line to this file when they are skipped; `make test` ends with their number.
test: export NNUNET_NIFTI_PYTHON := $(abspath $(or $(CARGO_TARGET_DIR),target))/venv-nifti/bin/python
test test-cluster: export NNUNET_SKIPPED := $(abspath $(or $(CARGO_TARGET_DIR),target))/skipped.tsv

# The CUDA build is checked with clippy too: clippy compiles only the metadata of dependencies, and both runs share it.
# The GPU kernels run on Vulkan, in software if there is no GPU.
test: setup-test
	@rm -f $(NNUNET_SKIPPED)
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(TESTED) --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --features nnunet-dist/cuda -- -D warnings
	$(CARGO) nextest run $(TESTED)
	$(CARGO) test $(TESTED) --doc
	@scripts/skipped $(NNUNET_SKIPPED)

# `test` runs a short form.
test-cluster:
	@scripts/setup nextest cluster
	@rm -f $(NNUNET_SKIPPED)
	NNUNET_CLUSTER=full $(CARGO) nextest run $(TESTED) -E 'binary(distributed) and test(/^cluster::/)'
	@scripts/skipped $(NNUNET_SKIPPED)

# `test` runs the README and the tutorial.
docs-test: setup
	@scripts/setup nextest book
	$(CARGO) build --locked --package nnunet-launch
	NNUNET_DOCS_TEST=1 NNUNET_DOCS_PAGE=$(PAGE) $(CARGO) nextest run $(TESTED) --test cli -E 'test(/^book_commands::/)' --no-capture

docs: setup
	@scripts/setup nextest
	NNUNET_UPDATE_DOCS=1 $(CARGO) nextest run $(TESTED) --test cli --test reference \
		-E 'binary(reference) or test(/^cli_reference::/)'

# `test` runs three minutes of it. SEED=2 gives another sequence of failures.
chaos:
	@scripts/setup nextest cluster
	NNUNET_CHAOS_SECONDS=$(or $(SECONDS),1800) NNUNET_CHAOS_SEED=$(or $(SEED),1) \
		$(CARGO) nextest run $(TESTED) -E 'binary(distributed) and test(/^cluster::chaos::/)' --no-capture

# `test` kills at two moments each.
kills: setup
	@scripts/setup nextest
	NNUNET_KILLS=$(or $(MOMENTS),20) $(CARGO) nextest run $(TESTED) --test training -E 'test(/^killed::/)' --no-capture

# Mutated files of every kind, and whole commands on changed inputs, ten minutes each. SEED=2 gives other inputs.
fuzz: setup
	@scripts/setup nextest
	NNUNET_FUZZ_SECONDS=$(or $(SECONDS),600) NNUNET_FUZZ_SEED=$(or $(SEED),0) $(CARGO) nextest run $(TESTED) --test hostile_files --no-capture

# Coverage-guided, ten minutes per target; see tests/fuzz/run.
fuzz-coverage:
	@scripts/setup fuzz
	tests/fuzz/run $(or $(SECONDS),600) $(TARGET)

# Installs PyTorch and nnU-Net v2 into a separate virtual environment.
bench: setup
	benches/peers/run.sh $(BENCH)

test-gpu:
	@scripts/setup nextest vulkan
	$(CARGO) nextest run $(TESTED) --test gpu

# NCCL=libnccl.so.2 packs this library; with NCCL 2.30 or newer, two ranks can share a GPU.
gpu-pack: setup
	benches/gpu/pack.sh $(if $(NCCL),-n $(NCCL))

# BIN uses the programs of an existing build.
deb: package
	$(CARGO) deb --locked --no-build --no-strip --output dist/

install: package
	@install -d $(DESTDIR)$(PREFIX)
	cp -r dist/package/. $(DESTDIR)$(PREFIX)/

PREFIX ?= /usr/local
.PHONY: package
package:
	@scripts/setup deb
	FEATURES=$(FEATURES) scripts/package $(BIN)

sbom:
	FEATURES=$(FEATURES) scripts/sbom dist/nnunet-dist.cdx.json

# `test` also compares licenses and sources with deny.toml, without cargo-deny.
deny:
	@scripts/setup deny
	$(CARGO) deny --locked check $(CHECK)

setup:
	@scripts/setup

.PHONY: setup-test
setup-test:
	@scripts/setup nextest vulkan nifti

fmt:
	$(CARGO) fmt --all

doc: setup
	$(CARGO) doc --locked --no-deps
	@if command -v mdbook >/dev/null; then mdbook build docs; else echo 'the book: cargo install mdbook --locked'; fi
