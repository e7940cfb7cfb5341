"""Versions on nodes beside the driver's."""

from collections.abc import Callable
from typing import Any

import pytest

from evoray.cluster import connection
from evoray.cluster.environment import check_nodes, packages
from evoray.errors import UserError


def having(**changes: str | None) -> Callable[[tuple[str, ...]], Callable[[], dict[str, str | None]]]:
    """A node with the driver's versions but for these."""

    def asking(names: tuple[str, ...]) -> Callable[[], dict[str, str | None]]:
        found = {name: changes.get(name, have) for name, have in packages().items() if name in names}
        return lambda: found

    return asking


def test_a_node_like_the_driver_is_fine(ray_here: None) -> None:
    assert set(packages()) == {"python", "ray", "torch", "transformers", "evoray"}
    check_nodes(packages())


def test_a_node_with_another_version_or_without_a_package_is_one_line(ray_here: None) -> None:
    torch = packages()["torch"]
    with pytest.raises(UserError) as refused:
        check_nodes(packages(), having(torch="2.7.0", evoray=None))
    assert f" has torch 2.7.0, not {torch}, no evoray; give all nodes the driver's image" in str(refused.value)
    assert str(refused.value).startswith("node ")
    assert "\n" not in str(refused.value)


def test_a_cluster_of_another_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\nThis process on "

    def init(**_: Any) -> None:
        raise RuntimeError(f"{said}10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n")

    monkeypatch.setattr(connection.ray, "init", init)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"with: Ray: 2\.50\.0 Python: 3\.12\.1 This process") as refused:
        connection.connect("auto", None, 1)
    assert "\n" not in str(refused.value)
