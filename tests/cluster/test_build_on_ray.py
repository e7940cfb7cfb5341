"""Builds by workers as real Ray actors: the store of a build without Ray, byte for byte, whatever kills them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from builds import Interrupted, built, contents
from searches import Material, Told

import evoray
from evoray.cluster import ray_crew
from evoray.cluster.build_worker import BuildActor, BuildWorker
from evoray.cluster.ray_crew import RayCrew
from evoray.errors import EvorayError, UserError
from evoray.run import build as verb
from evoray.store import StoreWriter

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

KINDS: dict[str, dict[str, Any]] = {
    "gptq": {"levels": ("2", "4"), "group_size": 32},
    "gptq on what was compressed": {"levels": ("2", "4"), "group_size": 32, "hessian_inputs": "quantized"},
    "rtn": {"method": "rtn", "levels": ("2", "4"), "group_size": 32, "data": None},
    "sparsegpt on what was compressed": {"kind": "sparsity", "levels": ("0.5", "0.7"), "hessian_inputs": "quantized"},
    "wanda": {"kind": "sparsity", "method": "wanda", "levels": ("0.5", "0.7")},
    "joint": {"kind": "joint", "levels": ("3", "4x0.5"), "group_size": 32},
}


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_workers_makes_the_same_bytes(
    ray_here: None, material: Material, tmp_path: Path, kind: str
) -> None:
    for workers in (0, 1, 2, 3) if "gptq on" in kind else (0, 2):
        built(material, tmp_path / str(workers), workers=workers, **KINDS[kind])
    whole = contents(tmp_path / "0")
    assert len(whole) == 22
    for folder in sorted(tmp_path.iterdir()):
        assert contents(folder) == whole, folder.name


@pytest.mark.cluster
def test_a_build_goes_on_with_another_number_of_workers(ray_here: None, material: Material, tmp_path: Path) -> None:
    given = KINDS["gptq on what was compressed"]
    built(material, tmp_path / "whole", **given)
    for stop, workers in ((3, 2), (9, 0), (12, 1), (16, 3)):
        with pytest.raises(Interrupted):
            built(material, tmp_path / "parts", stop, workers=workers, **given)
    built(material, tmp_path / "parts", workers=2, **given)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    # With nothing to do nobody is started.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "open_crew", None)
        built(material, tmp_path / "parts", workers=2, **given)


class Dying(BuildActor):
    """Dies, as by kill -9, once at each of some pieces of work: those whose mark it is the first to leave. Hangs at
    those that are marked so."""

    def _dies(self, *mark: object) -> None:
        folder, marks = _marks(self._ready())
        name = " ".join(map(str, mark))
        path = folder / name
        if f"always {name}" in marks or (f"hang {name}" in marks and not path.exists()):
            path.touch()
            time.sleep(3600)
        if name in marks and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def observe(self, shard: int, block: int, moves: bool) -> Any:
        self._dies("observe", shard, block)
        return super().observe(shard, block, moves)

    def advance(self, shard: int, block: int, given: Any) -> None:
        self._dies("advance", shard, block)
        super().advance(shard, block, given)

    def make(self, layers: Any, wanted: Any, lower_II: Any) -> Any:
        self._dies("make", layers[0])
        return super().make(layers, wanted, lower_II)


def _marks(worker: BuildWorker) -> tuple[Path, list[str]]:
    """Where marks are left and where to die, both beside the model: all that a worker's process knows is its spec."""
    folder = Path(worker.adapter.model.config._name_or_path)
    return folder.parent / "marks", (folder.parent / "deaths").read_text().splitlines()


@pytest.fixture
def deadly(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Material]:
    """The material with workers that die where they are told to."""

    def make(deaths: list[str]) -> Material:
        (tmp_path / "model").symlink_to(material.model)
        (tmp_path / "marks").mkdir()
        (tmp_path / "deaths").write_text("\n".join(deaths))
        monkeypatch.setattr(verb, "open_crew", lambda spec, **how: RayCrew(spec, actor_class=Dying, **how))
        return Material(str(tmp_path / "model"), material.store, material.text)

    return make


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["gptq", "gptq on what was compressed"])
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_change_nothing(
    ray_here: None, material: Material, tmp_path: Path, kind: str, workers: int, deadly: Any
) -> None:
    deaths = ["observe 3 0", "observe 0 2", "make model.layers.1.self_attn.o_proj", "make model.layers.2.mlp.down_proj"]
    if "compressed" in kind:
        deaths += ["advance 5 0", "advance 2 1"]
    mortal = deadly(deaths)
    told = Told()
    settings = {**KINDS[kind], "threads": 1, "hessian_tokens": 1024, "sequence_length": 64, "tokens_per_pass": 256}
    evoray.build(
        model=mortal.model, data=mortal.text, store=str(tmp_path / "killed"), workers=workers, progress=told, **settings
    )
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == sorted(deaths)
    assert sum("was lost, its work is done again" in note for note in told.notes) >= len(deaths)
    built(mortal, tmp_path / "whole", **KINDS[kind])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.cluster
def test_a_worker_that_hangs_at_its_work_is_restarted(
    ray_here: None, material: Material, tmp_path: Path, deadly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs at the same piece every time ends the build with a line, and nothing lost."""
    given = KINDS["gptq"]
    hanging = deadly(["hang observe 3 1", "hang make model.layers.1.self_attn.o_proj"])
    told = Told()
    settings = {**given, "threads": 1, "hessian_tokens": 1024, "sequence_length": 64, "tokens_per_pass": 256}
    settings |= {"model": hanging.model, "data": hanging.text, "workers": 2, "progress": told, "hung_after": 25}
    evoray.build(store=str(tmp_path / "hung"), **settings)
    assert sum("has not ended one piece of work within 25 s" in note for note in told.notes) == 2
    built(hanging, tmp_path / "whole", **given)
    assert contents(tmp_path / "hung") == contents(tmp_path / "whole")

    (tmp_path / "deaths").write_text("always make model.layers.2.mlp.down_proj")
    monkeypatch.setattr(ray_crew, "DEATHS", 2)
    with pytest.raises(
        EvorayError, match=r"longer than 25 s, .* to make model\.layers\.2\.mlp\.down_proj; .*hung-after"
    ):
        evoray.build(store=str(tmp_path / "stuck"), **settings)
    assert (tmp_path / "stuck" / "building.json").exists()
    evoray.build(store=str(tmp_path / "stuck"), **{**settings, "workers": 0})
    assert contents(tmp_path / "stuck") == contents(tmp_path / "whole")


@pytest.mark.cluster
def test_what_was_written_and_not_named_is_made_again(ray_here: None, material: Material, tmp_path: Path) -> None:
    """A driver was killed when eight files were in place."""
    given = KINDS["gptq"]
    built(material, tmp_path / "whole", **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "name_finished", lambda self, after=0.0: None)
        with pytest.raises(Interrupted):
            built(material, tmp_path / "parts", 8, workers=2, **given)
    assert len(list((tmp_path / "parts" / "layers").iterdir())) == 8
    assert not (tmp_path / "parts" / "building.json").exists()
    built(material, tmp_path / "parts", workers=1, **given)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


class Poisoned(BuildActor):
    """Dies at one group of layers whenever it makes it."""

    def make(self, layers: Any, wanted: Any, lower_II: Any) -> Any:
        if layers[0] == "model.layers.1.mlp.down_proj":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(layers, wanted, lower_II)


class Failing(BuildActor):
    """Fails, and lives."""

    def observe(self, shard: int, block: int, moves: bool) -> Any:
        raise RuntimeError("no such luck\nand more")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("actor_class", "said"),
    [
        (Poisoned, "workers die again and again while they make model.layers.1.mlp.down_proj: "),
        (Failing, "a worker failed with RuntimeError: no such luck"),
    ],
)
def test_what_kills_workers_by_itself_ends_the_build(
    ray_here: None, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actor_class: Any, said: str
) -> None:
    monkeypatch.setattr(verb, "open_crew", lambda spec, **how: RayCrew(spec, actor_class=actor_class, **how))
    with pytest.raises(EvorayError) as caught:
        built(material, tmp_path / "store", workers=2, **KINDS["gptq"])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.cluster
def test_a_worker_with_other_weights_is_refused(
    ray_here: None, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = verb.open_crew
    monkeypatch.setattr(verb, "open_crew", lambda spec, **how: opened(replace(spec, weights_digest="0" * 64), **how))
    with pytest.raises(UserError, match=r"finds other weights of .* than the driver"):
        built(material, tmp_path / "store", workers=1, **KINDS["rtn"])
