# `make` lists the targets. Everything runs in VENV, which is made on demand from the exact pins of the tests.

PYTHON ?= python3
TOOLS  := huggingface_hub hypothesis jupyter nbval pycocotools pytest pytest-xdist ruff websocket-client
VENV   := .venv
READY  := $(VENV)/.ready
RUN    := $(VENV)/bin/python

# What a shell carries in must not change what a notebook prints, nor which kernel runs it.
unexport JUPYTER_PATH MPLBACKEND PYTHONHOME PYTHONPATH
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL := 3
demo test notebooks: export IPYTHONDIR := $(CURDIR)/$(VENV)/ipython

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lab lint notebooks badges pins clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: out/Demo.html ## run Demo.ipynb on the shipped model and images: out/Demo.html
	@echo "The demo is ready: $(CURDIR)/out/Demo.html"

test: lint ## run all tests, notebooks included
	$(RUN) -m pytest --nbval --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lab: $(READY) ## open the notebooks in JupyterLab
	$(RUN) -m jupyter lab

lint: $(READY) ## check the code style
	@$(RUN) -m ruff check

notebooks: $(READY) ## run all notebooks anew and store their outputs
	$(RUN) tests/notebooks.py execute

badges: $(READY) ## write owner and name of the repository into all links: make badges REPO=owner/name
	$(RUN) tests/notebooks.py badges '$(REPO)'

pins: ## choose the exact versions of tests/requirements.txt anew: make pins PYTHON=python3.11
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Only what fits the oldest Python fits all: make pins PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv --clear out/pins
	out/pins/bin/python -m pip install --quiet --upgrade setuptools
	out/pins/bin/python -m pip install --quiet -r requirements.txt $(TOOLS)
	{ echo "# Everything that the tests install, exactly. Python 3.11 to 3.13, Linux x86-64. Made anew by: make pins"; \
	  out/pins/bin/python -m pip freeze --all --exclude pip; } > out/pins/requirements.txt
	mv out/pins/requirements.txt tests/requirements.txt

clean: ## remove .venv, out and caches
	rm -rf .venv out .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

out/Demo.html: Demo.ipynb tests/notebooks.py $(wildcard utils/*.py utils/*/*.py) $(shell find data -type f 2>/dev/null) \
    $(READY)
	@mkdir -p out
	@echo "Running Demo.ipynb ..."
	@$(RUN) tests/notebooks.py page Demo.ipynb $@

# opencv-python wants the system's libGL; where that is missing, the same version without windows takes its place.
$(READY): tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed. Name it: make PYTHON=python3.13 ..."; exit 1; }
	@echo "Installing into $(VENV): a minute or two, 3 GB on disk ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet -r tests/requirements.txt
	@if ! error=$$($(RUN) -c 'import cv2' 2>&1); then \
	  case "$$error" in *ImportError*.so*) ;; *) echo "$$error" >&2; exit 1;; esac; \
	  version=$$($(RUN) -c 'from importlib.metadata import version; print(version("opencv-python"))'); \
	  echo "opencv-python finds no libGL here: installing opencv-python-headless $$version instead."; \
	  $(RUN) -m pip uninstall --quiet --yes opencv-python; \
	  $(RUN) -m pip install --quiet "opencv-python-headless==$$version" && $(RUN) -c 'import cv2'; \
	fi
	@touch $@
