# Every target sets up what it needs; `make demo` and `make test` are the two to begin with.
.PHONY: setup demo test test-fast test-root-fs conformance lint bench wheel clean

PYTEST = .venv/bin/python -m pytest

setup:
	@tools/setup

demo: setup
	@.venv/bin/islet demo

# Everything: Rust, Python, conformance vectors, virtual machines end to end.
test: setup
	cargo test --release --workspace --exclude islet-native --quiet
	$(PYTEST)

# What needs no virtual machine.
test-fast: setup
	cargo test --release --workspace --exclude islet-native --quiet
	$(PYTEST) -m "not vm"

# A Debian root file system with nginx becomes an application in a realm.
test-root-fs: setup
	$(PYTEST) tests/e2e/test_root_file_system.py

# The OCI distribution specification's own suite against the registry; needs Go.
conformance: setup
	@.venv/bin/python tools/conformance

lint: setup
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --quiet -- -D warnings
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	tools/check-shell

bench: setup
	@.venv/bin/python -m bench

wheel: setup
	.venv/bin/maturin build --release --quiet --out dist
	@ls dist/*.whl

clean:
	rm -rf target dist build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis python/islet_cli/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
