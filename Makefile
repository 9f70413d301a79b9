# make demo：训练一个小模型并让它写字；make test：全部测试；make check-model：检查改过的 model/。各步对应的普通命令见 README.md 和 CONTRIBUTING.md。
PYTHON ?= python3
BIN := .venv/bin

define create_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "错误：$(PYTHON)：需要 Python 3.11 或更新的版本。用 make PYTHON=python3.12 指定。" >&2; exit 2; }
	$(PYTHON) -m venv .venv
endef

.PHONY: demo test lint check-model clean-venv

demo: .venv/runtime-installed
	$(BIN)/python pretrain.py --config configs/pocket_config_3M.json --data_path data/西游记.txt --model_path model.pth
	$(BIN)/python generate.py --model_path model.pth --prompt 悟空笑道： --max_new_tokens 120 --temperature 0.8 --top_k 50

test: .venv/development-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

check-model: .venv/runtime-installed
	$(BIN)/python verify.py $(MODULES)

lint: .venv/development-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/runtime-installed: requirements.txt
	$(create_venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/development-installed: requirements.txt requirements-dev.txt requirements-book.txt
	$(create_venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-book.txt
	@touch $@ .venv/runtime-installed

clean-venv:
	rm -rf .venv
