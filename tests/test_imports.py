"""The import graph has no cycles, even with imports inside functions."""

import grimp
import pytest


@pytest.mark.parametrize("package", ["engine", "server", "tui"])
def test_no_import_circles(package: str) -> None:
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert not circles(imports)


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c", "e"}, "c": {"a"}, "d": {"a", "d"}, "e": set()}
    assert circles(imports) == [["a", "b", "c"], ["d"]]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other (strongly connected components)."""
    reachable = {name: _reachable(name, imports) for name in imports}
    found = {name: sorted(other for other in seen if name in reachable[other]) for name, seen in reachable.items()}
    return [list(group) for group in sorted({tuple(group) for group in found.values() if group})]


def _reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the modules that one imports, directly or not; itself only in a cycle."""
    seen: set[str] = set()
    left = [*imports[start]]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += imports[name]
    return seen
