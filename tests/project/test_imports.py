"""The folders are layers: imports go one way between them, and no modules import each other."""

import ast
import graphlib

from conftest import ROOT

# From the bottom up.  Every other module of the package is a command, at the top.
LAYERS = (
    {"config", "statistics", "files", "errors", "version"},
    {"digits"}, {"data"}, {"models"}, {"training"}, {"parallel"}, {"runner"}, {"analysis"},
)  # fmt: skip


def imports_of(package):
    """Module -> the modules of the package that it imports, in functions and for types as well."""
    paths = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        paths[name.removesuffix(".__init__")] = path
    graph = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & paths.keys()
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    graph[name] |= {module if module in paths else node.module} & paths.keys()
    return graph


def layer_of(module):
    """The number of a module's layer."""
    part = (*module.split("."), "__init__")[1]
    return next((n for n, names in enumerate(LAYERS) if part in names), len(LAYERS))


def test_imports_go_one_way_between_folders():
    backward = []
    for module, imported in imports_of(ROOT / "mnist_cnn").items():
        for other in imported:
            if layer_of(other) > layer_of(module):
                backward.append(f"{module} imports {other}")
    assert not backward, "\n".join(sorted(backward))


def test_no_modules_import_each_other_in_a_circle():
    graph = imports_of(ROOT / "mnist_cnn")
    assert len(graph) > 30
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the modules
