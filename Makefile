# Each target sets up what it needs first; nothing else has to be typed on a fresh Debian 12.

export PATH := $(HOME)/.cargo/bin:$(PATH)
# Everything is built in one profile, so that the dependencies are compiled once. `make demo PROFILE=release` is a
# few per cent faster to run and several minutes slower to build.
PROFILE ?= dev
CARGO := cargo
# What is tested, the GPU's kernels too: always all together, so that the dependencies have the same features, and are
# compiled once.
TESTED := --locked --workspace --features nnunet-dist/nccl

.PHONY: help demo check test test-cluster docs docs-test chaos fuzz fuzz-coverage test-gpu gpu-pack bench deb install sbom \
	deny setup fmt doc

help:
	@echo 'make demo   generate a dataset, train on it with two processes, print its Dice'
	@echo 'make check  format, lints and unit tests of the crates that differ from main; BASE= for another commit'
	@echo 'make test   everything a change must pass'
	@echo 'make test-cluster   the tests on several hosts in full: lost ranks, hosts and links, Slurm (as root)'
	@echo 'make docs-test   every command of the book, run as a reader would; PAGE=serve for some pages'
	@echo 'make docs   write the pages anew that are made of what the program says of itself'
	@echo 'make chaos  half an hour of killed ranks, frozen hosts, pulled cables and full disks (as root); SECONDS=, SEED='
	@echo 'make fuzz   changed files of every kind, ten minutes for each; SECONDS='
	@echo 'make fuzz-coverage   the same guided by what the readers do with them (nightly Rust); SECONDS=, TARGET='
	@echo 'make bench  ours and nnU-Net in PyTorch, the same work in turn, on this machine; BENCH=step_f32 for some rows'
	@echo 'make test-gpu   the tests of the GPU kernels, on Vulkan, which Mesa has in software'
	@echo 'make gpu-pack   dist/gpu-pack.tar.xz: all that a GPU machine needs to be tested and measured'
	@echo 'make deb    dist/nnunet-dist_VERSION_ARCH.deb; BIN= for the folder of an existing build, FEATURES=cuda'
	@echo 'make install   both programs, their manual, completions, presets and scripts below PREFIX (/usr/local); BIN=, FEATURES='
	@echo 'make sbom   dist/nnunet-dist.cdx.json: every crate in the programs, with version, licence and checksum'
	@echo 'make deny   licences, sources and known holes of all crates; the last needs github.com, CHECK="licenses bans sources" does not'
	@echo 'make setup  install what building needs (as root by apt; otherwise print the line to run)'
	@echo 'make fmt    format the code'
	@echo 'make doc    build the API documentation, and the book where mdbook is installed'

demo: setup
	$(CARGO) run --locked --profile $(PROFILE) --bin nnunet-dist -- demo --dir demo

# BASE= compares with another commit than the one where the branch left main.
check: setup
	@scripts/setup nextest
	CARGO=$(CARGO) scripts/check $(BASE)

# The compile check of the CUDA build is a clippy run too: clippy compiles the dependencies' metadata only, and what the
# runs share is compiled once. The GPU's kernels are run on Vulkan, in software where there is no GPU.
test: setup-test
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(TESTED) --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --features nnunet-dist/cuda -- -D warnings
	$(CARGO) nextest run $(TESTED)
	$(CARGO) test $(TESTED) --doc

# `test` has the short form.
test-cluster:
	@scripts/setup nextest cluster
	NNUNET_CLUSTER=full $(CARGO) nextest run $(TESTED) -E 'binary(distributed) and test(/^cluster::/)'

# `test` has the README and the tutorial.
docs-test: setup
	@scripts/setup nextest book
	$(CARGO) build --locked --package nnunet-launch
	NNUNET_DOCS_TEST=1 NNUNET_DOCS_PAGE=$(PAGE) $(CARGO) nextest run $(TESTED) --test cli -E 'test(/^book_commands::/)' --no-capture

docs: setup
	@scripts/setup nextest
	NNUNET_UPDATE_DOCS=1 $(CARGO) nextest run $(TESTED) --test cli --test reference \
		-E 'binary(reference) or test(/^cli_reference::/)'

# `test` has two minutes of it. SEED=2 gives other disturbances.
chaos:
	@scripts/setup nextest cluster
	NNUNET_CHAOS_SECONDS=$(or $(SECONDS),1800) NNUNET_CHAOS_SEED=$(or $(SEED),1) \
		$(CARGO) nextest run $(TESTED) -E 'binary(distributed) and test(/^cluster::chaos::/)' --no-capture

# Changed files of every kind, for ten minutes each.
fuzz: setup
	@scripts/setup nextest
	NNUNET_FUZZ_SECONDS=$(or $(SECONDS),600) $(CARGO) nextest run $(TESTED) --test hostile_files --no-capture

# Guided by coverage, for ten minutes each; see tests/fuzz/run.
fuzz-coverage:
	@scripts/setup fuzz
	tests/fuzz/run $(or $(SECONDS),600) $(TARGET)

# Installs PyTorch and nnU-Net v2 into a virtual environment of their own.
bench: setup
	benches/peers/run.sh $(BENCH)

test-gpu:
	@scripts/setup nextest vulkan
	$(CARGO) nextest run $(TESTED) --test gpu

# With NCCL 2.30 or newer, two ranks share a GPU there: NCCL=libnccl.so.2
gpu-pack: setup
	benches/gpu/pack.sh $(if $(NCCL),-n $(NCCL))

# With BIN, the programs of an existing build.
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

# `test` compares licences and sources with deny.toml, too, by itself.
deny:
	@scripts/setup deny
	$(CARGO) deny --locked check $(CHECK)

setup:
	@scripts/setup

.PHONY: setup-test
setup-test:
	@scripts/setup nextest vulkan

fmt:
	$(CARGO) fmt --all

doc: setup
	$(CARGO) doc --locked --no-deps
	@if command -v mdbook >/dev/null; then mdbook build docs; else echo 'the book: cargo install mdbook --locked'; fi
