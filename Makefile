# Two commands matter: `make serve` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0+cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
COMPILED ?=
FAST := $(if $(filter-out 0,$(COMPILED)),$(VENV)/compiled/.done)
# bench-gateway shows both, where there is a compiler (COMPILED=0: only what is installed).
BOTH := $(if $(filter 0,$(COMPILED)),,$(if $(shell command -v cc),$(VENV)/compiled/.done))
ARGS ?=

.PHONY: serve test check fix docs bench-sizing bench-plan bench-speed bench-gateway bench-overload bench-million \
	bench-idle bench-routing bench-decision soak drill-kill compiled clean

serve: $(VENV)/.cpu $(FAST)  ## serve the embedded model (or ARGS="Qwen/Qwen3-0.6B", ARGS="berth.yaml")
	@exec $(if $(FAST),env PYTHONPATH=$(CURDIR)/$(VENV)/compiled) $(BIN)/berth serve $(ARGS)

test: $(VENV)/.dev  ## every test, on a real vLLM engine
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev  ## what a reviewer would not want to say twice
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.dev  ## format and apply the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "berth needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # Debian without python3-venv leaves half of one

# The +cpu build of torch is not on PyPI: take it from where pip is set up to look, else from PyTorch's own CPU index.
$(VENV)/.cpu: deploy/locks/cpu.txt pyproject.toml | $(VENV)/bin/python
	@echo "[berth] 1/3 torch, CPU build (200 MB)"
	@$(PIP) '$(TORCH)' 2>/dev/null || $(PIP) --index-url https://download.pytorch.org/whl/cpu '$(TORCH)'
	@echo "[berth] 2/3 vLLM, the embedded model and the libraries of both ($$(grep -c == $<) packages, a minute or two)"
	@$(PIP) -r $<
	@echo "[berth] 3/3 berth"
	@$(PIP) -e .
	@$(BIN)/python -m compileall -q serving gateway sizing benchmarks  # as pip does; also where nothing else writes bytecode
	@touch $@

$(VENV)/.dev: $(VENV)/.cpu deploy/locks/dev.txt
	@echo "[berth] installing the test tools into $(VENV)"
	@$(PIP) -r deploy/locks/dev.txt
	@sh deploy/promtool.sh $(VENV)
	@touch $@

# The same sources with what every request goes through as machine code (mypyc), in a folder of their own.
$(VENV)/compiled/.done: $(VENV)/.dev $(wildcard gateway/*.py gateway/*/*.py) pyproject.toml
	@echo "[berth] compiling the request path: two minutes, once, with $$(command -v cc || echo 'a C compiler, which is missing')"
	@rm -rf $(VENV)/compiled $(VENV)/source && mkdir $(VENV)/source  # of a copy: what is built would lie beside its source
	@cp -r pyproject.toml README.md LICENSE serving gateway sizing benchmarks $(VENV)/source
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=true $(PIP) --no-build-isolation --target $(VENV)/compiled $(VENV)/source
	@cd $(VENV)/compiled && rm -rf serving sizing benchmarks bin *.dist-info  # as they are in the tree, today and tomorrow
	@rm -rf $(VENV)/source && touch $@

compiled: $(VENV)/compiled/.done  ## the request path as machine code; then COMPILED=1 make serve, bench-decision

bench-sizing: $(VENV)/.dev  ## predicted beside logged memory and measured speed: LOGS=... CONFIGS=... PERF=... OUT=rows.jsonl
	@$(BIN)/python -m benchmarks.sizing_logs $(if $(LOGS),--logs $(LOGS)) $(if $(CONFIGS),--configs $(CONFIGS)) \
		$(if $(PERF),--perf $(PERF)) --out $(or $(OUT),runs/bench-sizing.jsonl)

bench-plan: $(VENV)/.dev  ## how long a plan takes, and berth size in all beside a floor
	@$(BIN)/python -m benchmarks.plan_speed $(ARGS)

bench-speed: $(VENV)/.dev  ## predicted beside measured speed: PERF=runs.json CONFIGS=configs.json [OUT=rows.jsonl]
	@$(BIN)/python -m benchmarks.sizing_speed $(if $(PERF),--perf '$(PERF)') $(if $(CONFIGS),--configs '$(CONFIGS)') \
		$(if $(OUT),--out '$(OUT)')

bench-gateway: $(VENV)/.dev $(BOTH)  ## what the gateway costs beside nginx and whichever peers are installed: ROUNDS=3 OUT=gateway.txt
	@$(BIN)/python -m benchmarks.gateway_cost --rounds $(or $(ROUNDS),7) $(if $(BOTH),--compiled $(VENV)/compiled) \
		$(if $(OUT),--out '$(OUT)')

bench-replay: $(VENV)/.dev  ## conversations over two real engines, under one routing policy after the other [OUT=replay.txt]
	@$(BIN)/python -m benchmarks.routing_replay $(ARGS) $(if $(OUT),--out '$(OUT)')

bench-overload: $(VENV)/.dev  ## goodput up to three times what an engine can do, with and without admission [OUT=overload.txt]
	@$(BIN)/python -m benchmarks.overload $(ARGS) $(if $(OUT),--out '$(OUT)')

bench-million: $(VENV)/.dev  ## does the gateway's memory grow over REQUESTS=1000000? [OUT=million.txt]
	@$(BIN)/python -m benchmarks.gateway_cost --requests $(or $(REQUESTS),1000000) $(if $(OUT),--out '$(OUT)')

bench-idle: $(VENV)/.dev  ## what IDLE=10000 idle connections and as many idle streams cost the gateway [OUT=idle.txt]
	@$(BIN)/python -m benchmarks.idle_streams --count $(or $(IDLE),10000) $(if $(OUT),--out '$(OUT)')

bench-routing: $(VENV)/.dev  ## routing policies on a recorded trace: TRACE=mooncake.jsonl [REPLICAS=8,16,64] [OUT=routing.txt]
	@test -n '$(TRACE)' || { echo "bench-routing: TRACE=path is missing (Mooncake jsonl or Azure csv, plain or .gz)" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.routing '$(TRACE)' $(if $(REPLICAS),--replicas '$(REPLICAS)') $(ARGS) \
		$(if $(OUT),--out '$(OUT)')

bench-decision: $(VENV)/.dev $(FAST)  ## microseconds of one routing decision, 32k tokens and 64 replicas [OUT=decision.txt]
	@$(if $(FAST),PYTHONPATH=$(VENV)/compiled) $(BIN)/python -P -m benchmarks.routing_cost $(ARGS) $(if $(OUT),--out '$(OUT)')

soak: $(VENV)/.dev  ## everything at once for MINUTES=30: is memory flat, do all counts come back to zero? [OUT=soak.txt]
	@$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30) $(if $(OUT),--out '$(OUT)')

drill-kill: $(VENV)/.dev  ## kill -9 an engine under 200 streams and count who noticed: ARGS="--streams 20" OUT=kill.txt
	@$(BIN)/python -m benchmarks.kill_drill $(ARGS) $(if $(OUT),--out '$(OUT)')

docs: $(VENV)/.dev  ## write the generated parts of README.md and docs/ anew
	$(BIN)/python -m tests.readme

clean:  ## remove the virtual environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
