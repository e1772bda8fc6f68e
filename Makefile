# Every target makes .venv itself, from hash-pinned requirements; needs python >= 3.11 and a package index.
# `make demo METHOD=pool` shows a pool instead of genes, `METHOD=lsamd` a search, `METHOD=tal` a hypernetwork,
# `METHOD=foundation` a teacher without classes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-all lint faults bench site notebooks release-check format schema requirements clean

demo: $(STAMP)
	$(BIN)/learngene demo $(if $(METHOD),--method $(METHOD))

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/deptry src

# Damaged files, killed runs, full disks, damaged images: about an hour, and root for the disks.
faults: $(STAMP)
	$(BIN)/python tests/faults/run.py

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

# Builds the pages of docs/ and the reference of the library into site/; a link that leads nowhere is an error.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/uv run -q --no-project --isolated --with-requirements requirements-docs.txt \
	  mkdocs build -q --strict

# Runs the notebooks and writes into them what they show.
notebooks: $(STAMP)
	$(BIN)/python docs/notebooks/run.py

# Builds sdist and wheel (from the sdist), and runs the demo of the wheel in an environment and a folder with nothing else.
release-check: $(STAMP)
	rm -rf dist
	$(BIN)/uv build -q
	folder=$$(mktemp -d) && wheel=$$(ls $(CURDIR)/dist/*.whl) && uv=$(abspath $(BIN))/uv && cd $$folder && \
	  $$uv tool run --isolated --from $$wheel learngene --version && \
	  $$uv tool run --isolated --from $$wheel learngene demo && test -s demo-output/demo.json && rm -rf $$folder

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): requirements.txt requirements-uv.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("learngene needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --no-index -e .
	touch $@

# Rewrites the JSON schema of a gene's metadata from its models.
schema: $(STAMP)
	$(BIN)/python -m learngene.genes.metadata_schema > docs/gene.schema.json

# Rewrites the pinned files from pyproject.toml: versions and hashes, no addresses.
requirements: $(STAMP)
	$(BIN)/uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-package learngene -o requirements.txt
	$(BIN)/uv pip compile -q --group pyproject.toml:docs --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate -o requirements-docs.txt
	echo uv | $(BIN)/uv pip compile -q - --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate -o requirements-uv.txt

clean:
	rm -rf $(VENV) site runs demo-output demo-output-pool demo-output-lsamd demo-output-tal demo-output-foundation
