"""Which modules a set of Python modules imports, found in their source without running it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping

from islet_cli.errors import InputError

# Where a statement holds further statements; imports stand nowhere else.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


@functools.lru_cache(maxsize=1024)
def imported_names(source: bytes, module: str, *, is_package: bool, lazy: bool = True) -> frozenset[str]:
    """Return the dotted names that the source imports, anywhere in it but under `if TYPE_CHECKING`.

    `from a import b` yields both `a` and `a.b`, because `b` may be a module.

    Args:
        source: Of the module.
        module: Its dotted name.
        is_package: Whether it is a package's `__init__`.
        lazy: Include what is imported only when a function runs.

    Raises:
        InputError: The source is not Python (`bad-source`).
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{module}: {error}", code="bad-source") from error
    package = module if is_package else module.rpartition(".")[0]
    out: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and _is_typing_guard(node.test):
            pending.extend(node.orelse)
        elif not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif isinstance(node, ast.Import):
            out.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            out.add(base)
            out.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        else:
            for block in _BLOCKS:
                pending.extend(getattr(node, block, ()))
    return frozenset(name for name in out if name)


def _is_typing_guard(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def module_name(path: str) -> tuple[str, bool]:
    """Return (dotted name, is a package) of a source path such as `json/__init__.py`."""
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        return ".".join(parts[:-1]), True
    return ".".join(parts), False


def closure(
    sources: Mapping[str, bytes], roots: Iterable[str], *, denied: frozenset[str] = frozenset(), lazy: bool = True
) -> set[str]:
    """Return the paths of `sources` that are needed when the modules `roots` are imported.

    Args:
        sources: Python sources by path relative to the import root.
        roots: Dotted names; what is not among the sources is skipped (built in, or an extension module).
        denied: Modules (with all below them) that are not followed from other modules, only as roots.
        lazy: As for `imported_names`.

    Returns:
        Paths, with the packages that the modules lie in.
    """
    by_name = {module_name(path)[0]: path for path in sources}
    pending = list(roots)
    taken: set[str] = set()
    while pending:
        name = pending.pop()
        for depth in range(1, name.count(".") + 2):
            path = by_name.get(".".join(name.split(".")[:depth]))
            if path is None or path in taken:
                continue
            taken.add(path)
            module, is_package = module_name(path)
            found = imported_names(sources[path], module, is_package=is_package, lazy=lazy)
            pending.extend(item for item in found if not is_denied(item, denied))
    return taken


def is_denied(name: str, denied: frozenset[str]) -> bool:
    """Whether `name` or a package that it lies in is among `denied`."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in denied for depth in range(1, len(parts) + 1))
