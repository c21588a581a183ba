# Two commands: `make up` brings up the platform and shows it; `make test` proves it.
.PHONY: help install up down purge demo test test-all torture soak check bench reference sync

help:
	@echo "make up        install, set up this host, start, and run the demo (root)"
	@echo "make down      stop the daemons; sandboxes and data stay"
	@echo "make purge     remove everything that make up made"
	@echo "make test      all tests, on the real runtimes, in an instance of their own (root)"
	@echo "make test-all  the long ones too, resumable; results in tests/results"
	@echo "make torture   kill each part at each step of each operation, resumable (TORTURE='--minutes 30 --rounds 2')"
	@echo "make soak      5,000 cycles, resumable: leaks per cycle, growth of the daemons (SOAK='--minutes 30')"
	@echo "make check     format, lint, types, layers"
	@echo "make bench     the table of times, beside the bare runtimes"

install:
	@scripts/install.sh

up: install
	@sandkeep setup
	@sandkeep up
	@sandkeep demo

down:
	@if command -v sandkeep >/dev/null; then sandkeep down; else echo "nothing is installed here; make up does it" >&2; fi

purge:
	@scripts/purge.sh

test:
	@scripts/test.sh

test-all:
	@SANDKEEP_TESTS=all scripts/test.sh

torture:
	@scripts/test.sh torture $(TORTURE)

soak:
	@scripts/test.sh soak $(SOAK)

check:
	@scripts/test.sh check

bench:
	@scripts/test.sh bench

reference:
	@scripts/test.sh reference
