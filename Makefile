# Two commands do everything on a fresh machine: `make demo` and `make test`.  Both install what is missing into .venv.
VENV ?= .venv
PY := $(VENV)/bin/python
WORK_DIRS ?= work_dirs
DATA ?= data/demo

.PHONY: help setup data demo demo-dense demo-seg demo-seg-dense data-cls demo-cls demo-vqa test \
        package benchmark docs tutorial lint clean

help:
	@echo 'make demo        install, make the demo dataset, train and evaluate the small APT detector, draw pictures'
	@echo 'make demo-dense  the same with its dense twin, for comparison'
	@echo 'make demo-seg    the same for segmentation; make demo-seg-dense, its dense twin'
	@echo 'make demo-cls    classification: a dense model, then APT from it; a table of both'
	@echo 'make demo-vqa    train a small LLaVA from nothing on questions about scenes, answer them with fewer tokens'
	@echo 'make test        install, lint, run the tests'
	@echo 'make package     install, build the wheel and use it from an empty directory'
	@echo 'make benchmark   measure what docs/benchmarks.md reports, and write its tables'
	@echo 'make setup       install what is missing into $(VENV); MMCV=compiled compiles the operators of mmcv too,'
	@echo '                 OPENMMLAB=onedl takes the maintained forks: docs/get_started.md'
	@echo 'make docs        install mkdocs too, build the documentation into build/site, check its links'
	@echo 'make tutorial    execute docs/tutorial.ipynb into build/tutorial'
	@echo 'make clean       remove the demo runs and the demo dataset'

setup:
	@VENV='$(VENV)' tools/setup_env.sh

data: setup
	@$(PY) tools/demo/make_demo_dataset.py --out $(DATA)

demo: data
	@$(PY) tools/demo/run_demo.py configs/apt_eva02_ti_demo_det.py --work-dir $(WORK_DIRS)/apt_eva02_ti_demo_det

demo-dense: data
	@$(PY) tools/demo/run_demo.py configs/eva02_ti_demo_det.py --work-dir $(WORK_DIRS)/eva02_ti_demo_det

demo-seg: data
	@$(PY) tools/demo/run_demo.py configs/apt_eva02_ti_demo_seg.py --work-dir $(WORK_DIRS)/apt_eva02_ti_demo_seg

demo-seg-dense: data
	@$(PY) tools/demo/run_demo.py configs/eva02_ti_demo_seg.py --work-dir $(WORK_DIRS)/eva02_ti_demo_seg

data-cls: setup
	@$(PY) tools/demo/make_class_dataset.py --out '$(DATA)_cls'

demo-cls: data-cls
	@$(PY) tools/demo/run_class_demo.py --work-dir $(WORK_DIRS)/demo_cls

# Threads that wait give up their core: where another process wants it, spinning ones slow training down.
demo-vqa: setup
	@OMP_WAIT_POLICY=PASSIVE $(PY) tools/demo/run_vqa_demo.py --data '$(DATA)_vqa' --work-dir '$(WORK_DIRS)/demo_vqa'

benchmark: setup
	@$(PY) tools/benchmark/benchmark_docs.py

# What only these two need is of no use to the tests, and does not disturb them.
$(VENV)/.docs_installed: requirements-docs.txt | setup
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

docs: setup $(VENV)/.docs_installed
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

tutorial: setup $(VENV)/.docs_installed
	@$(PY) tools/docs/run_tutorial.py

lint: setup
	@$(PY) -m ruff check .

# A file's tests stay together: they share what is slow to make.
test: lint
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile

package: setup
	@$(PY) tests/installed_package.py

clean:
	rm -rf $(foreach config,apt_eva02_ti_demo_det eva02_ti_demo_det apt_eva02_ti_demo_seg eva02_ti_demo_seg demo_cls,'$(WORK_DIRS)/$(config)')
	rm -rf '$(WORK_DIRS)/demo_vqa'
	@if grep -qs vqa_scenes '$(DATA)_vqa/meta.json'; then rm -rf '$(DATA)_vqa'; fi
	@if grep -qs make_demo_dataset '$(DATA)/meta.json'; then rm -rf '$(DATA)'; fi
	@if grep -qs make_class_dataset '$(DATA)_cls/meta.json'; then rm -rf '$(DATA)_cls'; fi
