# Everything here works on a machine that has only Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Four processes, each with servers of its own: two cores do that, since tests often wait for something.
# A real Airflow needs the machine for itself.
FOUR := --numprocesses=4 --dist=loadfile

.PHONY: demo ui test test-postgres test-stock fuzz soak soak-events torture check format bench clean

# Installed anew only when what it is made from has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

demo: $(VENV)/.installed  ## the main job on real Airflow and two real PostgreSQL servers
	$(BIN)/python -m airflow_dblink.embedded.demo

ui: $(VENV)/.installed  ## the same in Airflow's own web interface
	$(BIN)/python -m airflow_dblink.embedded.demo --ui

test: $(VENV)/.installed  ## every test, on the embedded PostgreSQL
	$(PYTEST) $(FOUR) --ignore=tests/acceptance
	$(PYTEST) tests/acceptance

# Another PostgreSQL: make test-postgres PG_BINDIR=$$(pg_config --bindir)
test-postgres: $(VENV)/.installed  ## the tests that need a server, on the PostgreSQL in PG_BINDIR
	AIRFLOW_DBLINK_PG_BINDIR="$(PG_BINDIR)" $(PYTEST) $(FOUR) tests/integration tests/differential

test-stock: $(VENV)/.installed  ## the stock providers' own tests, with DblinkHook for PostgresHook
	$(BIN)/python -m tests.stock

# Until a difference is found, or for make fuzz MINUTES=10.
fuzz: $(VENV)/.installed  ## the builders beside the extension's, on random tables
	$(BIN)/python -m tests.differential $(if $(MINUTES),--minutes $(MINUTES))

soak: $(VENV)/.installed  ## remote jobs under randomized kills on real Airflow: make soak ROUNDS=100
	$(BIN)/python -m tests.soak --rounds $(or $(ROUNDS),100)

soak-events: $(VENV)/.installed  ## events under random kills on real Airflow: make soak-events KILLS=10
	$(BIN)/python -m tests.soak_events --kills $(or $(KILLS),10)

torture: $(VENV)/.installed  ## loads of sets of tables under random deaths: make torture KILLS=300
	$(BIN)/python -m tests.torture --kills $(or $(KILLS),300)

check: $(VENV)/.installed  ## lint, format, borders of imports, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## figures beside other tools', written to docs/benchmarks.md and README
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
