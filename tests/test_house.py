"""The house rules that a reader of one file cannot see: who may import whom, and what no file may do."""

import ast
import dataclasses
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lalp_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [*FILES, *sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "allow_pickle", "eval", "exec"}
ROOMS = ("data", "student", "scoring", "selection", "training", "evaluation", "mini", "commands")


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, whether it is imported when its file is, and by which line."""

    module: str
    at_start: bool
    line: int


def imports_of(source: str, package: str = "") -> list[Import]:
    """All imports of a source; of ``from a import b`` both a and a.b, as b may be a module.

    Args:
      package: dotted name of the package that the file is in, for relative imports.
    """
    return list(_walk(ast.parse(source), package, at_start=True))


def _walk(node: ast.AST, package: str, at_start: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, at_start, node.lineno)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield Import(base, at_start, node.lineno)
        for alias in node.names:
            yield Import(f"{base}.{alias.name}", at_start, node.lineno)
    deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, at_start and not deferred)


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def room(module: str) -> int | None:
    """Place of a module's room in the order of rooms; None outside all of them."""
    parts = module.split(".")
    return ROOMS.index(parts[1]) if parts[0] == "lalp_jax" and len(parts) > 1 and parts[1] in ROOMS else None


def backwards(module: str, imports: list[Import]) -> list[Import]:
    """The imports from a later room; a file outside the rooms (errors) imports from none."""
    own = room(module)
    return [i for i in imports if (other := room(i.module)) is not None and other > (-1 if own is None else own)]


def names_in(source: str) -> set[str]:
    """Every identifier that the code uses, not what comments and texts say; ``.x`` for an attribute x."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.keyword(arg=str(name)):
                found.update(name.split("."))
            case ast.ImportFrom(module=str(name)):
                found.update(name.split("."))
            case ast.Attribute(attr=name):
                found.add(f".{name}")
    return found


def trusts_remote_code(source: str) -> bool:
    """Whether any call or dictionary says that it trusts remote code, other than with a plain False."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                return True
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            return True
    return False


def test_the_readers_of_sources_see_what_they_should():
    source = (
        "import tensorflow as tf\nfrom ..scoring import local\n"
        "def f():\n    from lalp_jax.commands.work import prepare\n"
        "if TYPE_CHECKING:\n    import torch\n"
    )
    found = {i.module: i.at_start for i in imports_of(source, "lalp_jax.data")}
    assert found == {
        "tensorflow": True, "lalp_jax.scoring": True, "lalp_jax.scoring.local": True,
        "lalp_jax.commands.work": False, "lalp_jax.commands.work.prepare": False, "torch": False,
    }  # fmt: skip
    late = {i.module for i in backwards("lalp_jax.data.x", imports_of(source, "lalp_jax.data"))}
    assert late == {i for i in found if i.startswith("lalp_jax")}
    assert not backwards("lalp_jax.commands.x", imports_of(source, "lalp_jax.data"))
    assert trusts_remote_code("f(trust_remote_code=True)")
    assert trusts_remote_code("f(**{'trust_remote_code': 1})")
    assert not trusts_remote_code("f(trust_remote_code=False)")
    assert "PartitionSpec" in names_in("from jax.sharding import PartitionSpec as P")
    assert "pickle" in names_in("import numpy, pickle")
    assert "pickle" in names_in("from pickle import loads")
    assert names_in("np.load(x, allow_pickle=True)") >= {"np", ".load", "x", "allow_pickle"}
    assert "eval" not in names_in("model.eval()")
    assert not names_in("'pickle'  # pickle")


def test_the_rooms_are_those_that_exist():
    assert len(FILES) > 30
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_data_flows_one_way(path):
    late = backwards(module_of(path), imports_of(path.read_text(), package_of(path)))
    assert not late, [f"line {i.line}: {i.module}" for i in late]


def test_no_two_files_import_each_other():
    """Imports within functions count too; those for type checkers alone do not exist at run time."""
    modules = {module_of(path) for path in FILES}
    graph = {}
    for path in FILES:
        tree = ast.parse(path.read_text())
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
        imports = imports_of(ast.unparse(tree), package_of(path))
        graph[module_of(path)] = {i.module for i in imports} & (modules - {"lalp_jax", module_of(path)})
    assert sum(map(len, graph.values())) > 50
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_tensorflow_at_its_start(path):
    early = [
        i for i in imports_of(path.read_text(), package_of(path))
        if i.at_start and i.module.split(".")[0] in ("tensorflow", "tensorflow_datasets")
    ]  # fmt: skip
    assert not early, f"line {early[0].line}"


def test_partition_specs_are_made_in_one_file():
    using = [module_of(p) for p in FILES if names_in(p.read_text()) & {"PartitionSpec", ".PartitionSpec"}]
    assert using == ["lalp_jax.student.sharding"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_code_from_data(path):
    source = path.read_text()
    assert not names_in(source) & FORBIDDEN
    assert not trusts_remote_code(source)
