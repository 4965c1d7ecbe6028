"""What imports what: no circles, neither of modules nor of packages, and kernels below all else.

Read from the source, so that an import inside a function counts as one at the top; those for annotations alone
(`if TYPE_CHECKING`) do not. A package's programs (`__main__`) stand above all packages: nothing may import them.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("pyengine", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for top in ("pyengine", "kernels") for path in (ROOT / top).rglob("*.py")}


def imports(node: ast.AST, package: list[str]) -> Iterator[str]:
    """The modules that a module of `package` names in its import statements."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) + 1 - node.level] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        named = [f"{base}.{alias.name}" for alias in node.names]
        yield from (name if name in MODULES else base for name in named)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, package)


def graph() -> dict[str, set[str]]:
    found = {}
    for name, path in MODULES.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        named = set(imports(ast.parse(path.read_text(encoding="utf-8")), package))
        found[name] = named & MODULES.keys() - {name}
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of the graph, empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_no_module_imports_itself_by_way_of_others():
    edges = graph()
    assert "pyengine.model.transformer" in edges["pyengine.model"]
    assert not circle(edges)
    assert circle(edges | {"pyengine.errors": {"pyengine.train.loop"}})  # were there one, it would be found


def test_no_package_imports_itself_by_way_of_others():
    edges: dict[str, set[str]] = {}
    for module, named in graph().items():
        assert not any(name.endswith("__main__") for name in named), module
        if not module.endswith("__main__") and module != "pyengine":  # the front door re-exports
            packages = {package_of(name) for name in named} - {package_of(module), "pyengine"}
            edges.setdefault(package_of(module), set()).update(packages)
    assert not circle(edges)
    assert circle(edges | {"pyengine.text": {"pyengine.data"}})


def test_kernels_import_nothing_of_the_rest():
    named = {
        name for module, names in graph().items() if module.startswith("pyengine.kernels") for name in names
    }
    assert not {name for name in named if not name.startswith("pyengine.kernels")}
