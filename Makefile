# setup   .venv with everything (Python 3.11 or newer is all that is needed)
# demo    fine-tune the embedded model on the sample creatures, then generate base and tuned images side by side
# test    what CI runs, with servers: a real Label Studio (1 GB, installed on first use) and a real Chromium; quick: without
# test-all adds the slow tier; lint: ruff and pyright; clean: delete what can be made again
PYTHON ?= python3
BIN := .venv/bin
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SERVERS := $(PYTEST) tests/servers -m "servers and not slow" -o cache_dir=.pytest_cache/servers
PROMPTS := --prompt "a water type fridge" --prompt "a fire type fridge" --prompt "a grass type fridge" \
           --prompt "an electric type fridge" --prompt "a guitar" --prompt "a cactus"

.PHONY: setup demo test quick servers servers-beside test-all lint format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version); Atelier needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[annotation,dev]"
	@touch .venv/ready

demo: setup
	$(BIN)/accelerate launch --quiet --config_file accelerate_config.yaml train/finetune.py
	$(BIN)/python infer/generate.py --compare-base $(PROMPTS)

# The servers tier mostly waits, so it runs beside the quick tier, which is niced. A test file that fails there, with a
# real browser and a real server on a busy machine, is run once more when the machine is idle
test: setup
	$(BIN)/ruff check .
	@mkdir -p build; rm -rf build/again .pytest_cache/servers
	$(MAKE) -j2 quick servers-beside
	@if [ -e build/again ]; then $(PYTEST) -m "servers and not slow" $$($(BIN)/python tests/failed_files.py); fi

quick: setup
	nice $(PYTEST) -n 2 --dist worksteal

servers-beside: setup
	@$(SERVERS) || touch build/again

servers: setup
	$(SERVERS)

test-all: test
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
