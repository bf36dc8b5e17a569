# EdgeGuard: `make help` lists what there is. Every target installs what it needs (root, or sudo) and
# uses Debian's own Python, because that is what devices have.

PYTHON = /usr/bin/python3
SUITE  = bookworm trixie
SECONDS = 10
JOBS    = 2
SEED    = 0
TESTS  = tests/unit
ARCH   = amd64
# device: containers (nspawn), on this machine's kernel; emulated: machines of their own (QEMU), the only way for ARM
LEVEL  = $(if $(filter amd64,$(ARCH)),device,emulated)
ONLY   =
# not empty: all packages, slips and days of the upgrade tests, a quarter of an hour more
LONG   =
# of `make scale-demo`: --devices N --events N --post N
FLEET  =
# not empty: so many blind inputs in one process whose memory is watched, in place of the coverage-guided run
INPUTS =
export PYTHONPYCACHEPREFIX = $(CURDIR)/build/pycache
export HYPOTHESIS_STORAGE_DIRECTORY = $(CURDIR)/build/hypothesis
PYTEST = $(PYTHON) -m pytest -o cache_dir=build/pytest
# Unit tests share nothing, and a third of their time is waiting: one more at work than there are cores, five at most.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 5)))
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile
# Root and device tests: the environment that they need comes along.
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PYTHONPYCACHEPREFIX,HYPOTHESIS_STORAGE_DIRECTORY,EDGEGUARD_CACHE,EDGEGUARD_POWER_MOMENTS,EDGEGUARD_POWER_SEED,EDGEGUARD_ROOT_BOOKWORM,EDGEGUARD_ROOT_TRIXIE)
VENV = build/venv

.DEFAULT_GOAL = help
.PHONY: help run test test-scale scale-demo test-root test-power test-device test-fresh test-newest test-interop bench bench-peers lint check fuzz corpus deb lintian packages clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ printf "  make %-13s", $$2; $$1=$$2=""; print $$0 }'

run: ## a collector and a daemon on this machine, everything below build/run; Ctrl-C ends it
	@packaging/tools/bootstrap.sh run
	@$(PYTHON) packaging/tools/run.py

test: ## unit tests: no root, no network, a few minutes at most
	@packaging/tools/bootstrap.sh test
	$(PYTEST) $(SIDE_BY_SIDE) $(TESTS)

test-scale: build/venv-scale/ready ## the collector on PostgreSQL and behind JetStream, several workers, killed on the way
	@packaging/tools/bootstrap.sh test scale
	build/venv-scale/bin/python -m pytest -o cache_dir=build/pytest -rs -m "postgres or scale" tests/unit/collector

scale-demo: build/venv-scale/ready ## 2,000 devices, 5 million events: JetStream, two workers, PostgreSQL; FLEET="--devices 100 ..."
	@packaging/tools/bootstrap.sh run scale
	@build/venv-scale/bin/python packaging/tools/scale_demo.py $(FLEET)

build/venv-scale/ready: pyproject.toml # the client of NATS, which Debian does not have, beside Debian's packages
	@packaging/tools/bootstrap.sh run lint
	$(PYTHON) -m venv --clear --system-site-packages build/venv-scale
	build/venv-scale/bin/pip install -q $$($(PYTHON) packaging/tools/pins.py nats-py)
	@touch $@

test-root: ## tests that need root: own namespaces and mounts, nothing outside them
	@packaging/tools/bootstrap.sh test root
	$(AS_ROOT) $(PYTEST) -m root tests/root

test-power: ## the state after power cuts, disk faults and kills at hundreds of moments; needs root
	@packaging/tools/bootstrap.sh test power
	$(AS_ROOT) $(PYTEST) -rs -m power tests/power

test-device: deb ## the package on booted Debian, SUITE="bookworm trixie", ARCH=arm64 emulated; needs root
	@packaging/tools/bootstrap.sh test $(if $(filter device,$(LEVEL)),device,emulated-$(ARCH))
	$(AS_ROOT) $(PYTEST) -m $(LEVEL) tests/device --suite="$(SUITE)" --arch=$(ARCH) $(if $(LONG),--long -s) $(if $(ONLY),-k "$(ONLY)")

test-fresh: ## `make run` and `make test` as the first command on fresh Debian roots (SUITE=...); needs root
	@packaging/tools/bootstrap.sh test device
	$(AS_ROOT) $(PYTEST) -m fresh tests/fresh --suite="$(SUITE)" $(if $(ONLY),-k "$(ONLY)")

bench: ## the figures, each with its reference in the same run
	@packaging/tools/bootstrap.sh test root
	@$(PYTHON) tests/bench/run.py

bench-peers: ## EdgeGuard, AIDE and samhain on the same files: ten minutes; needs root and the Debian archive
	@packaging/tools/bootstrap.sh test root
	@$(PYTHON) tests/bench/run.py beside_peers.py

lint: $(VENV)/ready ## ruff and mypy --strict, versions from pyproject.toml
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy edgeguard

$(VENV)/ready: pyproject.toml
	@packaging/tools/bootstrap.sh run lint
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q $$($(PYTHON) packaging/tools/pins.py ruff mypy) cryptography aiohttp
	@touch $@

test-newest: build/venv-newest/ready ## unit tests with the newest release of each dependency
	build/venv-newest/bin/python -m pytest -o cache_dir=build/pytest-newest $(SIDE_BY_SIDE) tests/unit

build/venv-newest/ready: pyproject.toml
	@packaging/tools/bootstrap.sh run newest
	$(PYTHON) -m venv --clear build/venv-newest
	build/venv-newest/bin/pip install -q --upgrade pytest pytest-xdist hypothesis psutil pyudev systemd-python cryptography cbor2 aiohttp paho-mqtt
	@touch $@

test-interop: build/venv-interop/ready ## our bytes, read by other people's COSE, CBOR and CDDL libraries
	@packaging/tools/bootstrap.sh interop
	build/venv-interop/bin/python -m pytest -o cache_dir=build/pytest-interop tests/unit/records/test_vectors.py \
	    tests/unit/records/test_foreign_readers.py tests/unit/records/test_packing.py \
	    tests/unit/codec/test_cose.py tests/unit/codec/test_encrypt.py tests/unit/walk \
	    tests/unit/collector/test_ocsf_foreign.py

build/venv-interop/ready: pyproject.toml
	@packaging/tools/bootstrap.sh run newest
	$(PYTHON) -m venv --clear build/venv-interop
	build/venv-interop/bin/pip install -q $$($(PYTHON) packaging/tools/pins.py pytest pycose cwt cbor pycddl cddl-verifier ocsf-json-schema jsonschema) hypothesis "cbor2<6" cryptography
	@touch $@

check: ## known holes in the dependencies, and that docs/proofs.md is current; no network
	@packaging/tools/bootstrap.sh run
	@$(PYTHON) packaging/tools/proofs.py --check
	@$(PYTHON) packaging/tools/audit.py
	@$(PYTHON) packaging/tools/audit.py --installed debian

fuzz: build/venv-fuzz/ready ## every reader of bytes from outside, SECONDS=10 each, JOBS=2 at a time; or INPUTS=10000000 ONLY="cbor packed ..."
	$(if $(INPUTS),$(PYTHON) -m tests.fuzz.many --inputs $(INPUTS) --seed $(SEED) $(if $(ONLY),--only $(ONLY)),build/venv-fuzz/bin/python -m tests.fuzz.run --seconds $(SECONDS) --jobs $(JOBS) --seed $(SEED))

corpus: build/venv-fuzz/ready # what `make fuzz` found becomes tests/fuzz/corpus
	build/venv-fuzz/bin/python -m tests.fuzz.run --minimise

build/venv-fuzz/ready: pyproject.toml
	@packaging/tools/bootstrap.sh run lint
	$(PYTHON) -m venv --clear --system-site-packages build/venv-fuzz
	build/venv-fuzz/bin/pip install -q $$($(PYTHON) packaging/tools/pins.py atheris)
	@touch $@

deb: ## dist/edgeguard_*.deb and dist/edgeguard-collector_*.deb
	@packaging/tools/bootstrap.sh deb
	@$(PYTHON) packaging/tools/build_deb.py

lintian: deb ## what Debian thinks of the packages
	# Debian 12's lintian still asks for init scripts; both releases run systemd, and so do the devices.
	lintian $$(lintian-explain-tags --list-tags | sed -n 's/^package-supports-alternative-init-but-no-init.d-script$$/--suppress-tags=&/p') --pedantic --display-info --fail-on error,warning,info,pedantic dist/*.deb

packages: deb ## the packages on clean roots of both releases: lintian there, piuparts, autopkgtest; needs root
	@packaging/tools/bootstrap.sh device packages
	$(AS_ROOT) $(PYTHON) packaging/tools/check_deb.py dist/*.deb
	$(AS_ROOT) $(PYTHON) -m tests.device.packages $(SUITE)

clean: ## remove build/, dist/ and compiled code
	rm -rf build dist
	find edgeguard packaging tests -name __pycache__ -prune -exec rm -rf {} +
