# Two commands do everything: `make course` and `make test`. Both set up what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
EXTRAS := notebook,keras,dev
RESULT := build/course/work
ALONE  := tests/test_browser.py tests/test_window.py tests/test_real_faces.py

.PHONY: course class test slow lint audit setup badges clean

course: $(READY)  ## run the six notebooks: make course [ARCHIVE=some.zip]
	@$(BIN)/python notebooks/run_course.py $(if $(ARCHIVE),--archive "$(ARCHIVE)")

class: course  ## for teachers: every lesson then opens by itself, and without a network
	@mkdir -p data outputs
	@test -e data/course || cp -r $(RESULT)/data data/course
	@test -e outputs/course || cp -r $(RESULT)/run outputs/course
	@$(BIN)/python -c "from emo import create_model; create_model()" >/dev/null 2>&1 || \
	  echo "ImageNet weights could not be fetched: set pretrained = False in lesson 03"
	@echo "Ready: $(BIN)/jupyter lab notebooks"

# Two files at a time; one thread each, because waiting threads of two processes slow both down.
test: $(READY)  ## the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(READY)  ## faults, browser, window, Colab and real faces
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations 12 \
	  $(ALONE:%=--ignore %)
	@$(BIN)/python -m pytest -m slow --durations 12 $(ALONE)

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

audit: $(READY)  ## known weaknesses of what is installed; needs the network
	@mkdir -p build
	@$(BIN)/uv pip freeze -q --python $(BIN)/python --exclude-editable >build/installed.txt
	@$(BIN)/uv tool run -q pip-audit --strict --no-deps --disable-pip -r build/installed.txt \
	  >build/audit.txt 2>&1; status=$$?; cat build/audit.txt; \
	  ! grep -qi "connection\|failed to fetch\|timed out" build/audit.txt || echo "offline: nothing was audited"; \
	  exit $$status

setup: $(READY)  ## install everything and fetch the face model

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) -V); try make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@echo "Installing into $(VENV) (a minute or more, and about 6 GB, the first time)"
	@if $(BIN)/python -m pip install -q --disable-pip-version-check uv && \
	  $(BIN)/uv pip install -q --python $(BIN)/python -e ".[$(EXTRAS)]"; then :; else \
	  echo "uv did not work here; trying pip"; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[$(EXTRAS)]"; fi
	@$(BIN)/python -c "from emo.download import face_model_path; print('face model:', face_model_path())"
	@touch $@

badges: $(READY)  ## point badges and Colab cells to a repository: make badges REPO=owner/name
	@$(BIN)/python notebooks/set_address.py "$(REPO)"

clean:  ## remove what the commands made, but no data and no outputs
	rm -rf build $(VENV) .pytest_cache .ruff_cache
