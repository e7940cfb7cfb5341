"""What `import evoray` offers, and the driver that the README shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import evoray
from evoray.errors import UserError

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", evoray.__all__)
def test_every_name_is_there_and_stays_there(name):
    assert callable(getattr(evoray, name))
    # A package of the same name, imported on the way, would have taken its place.
    assert callable(getattr(evoray, name))
    assert name in dir(evoray)


def test_unknown_names_are_errors():
    with pytest.raises(AttributeError, match="nothing"):
        evoray.nothing  # noqa: B018


@pytest.mark.parametrize("heavy", ["torch", "ray", "transformers", "pyarrow", "numpy"])
def test_importing_evoray_imports_nothing_heavy(heavy):
    code = f"import sys, evoray; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def driver_of_the_readme() -> str:
    """The Python driver in the README."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if "open_pool" in block)


def test_the_readmes_driver_fits_in_20_lines():
    assert len([line for line in driver_of_the_readme().splitlines() if line.strip()]) <= 20


def test_the_readmes_driver_runs(tmp_path):
    evoray.build(
        model="embedded", store=str(tmp_path / "evoray-demo" / "store"), method="rtn", group_size=64, threads=1
    )
    # In the driver's own process and a shorter text: the pool of actors has its own tests.
    code = driver_of_the_readme().replace("workers=2", "workers=0").replace("tokens=16384", "tokens=4096")
    code = code.replace("range(5)", "range(2)").replace("range(8)", "range(3)").replace("4096, rng", "1024, rng")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("/ 4096", "/ 1024")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    generations = [line.split()[:2] for line in done.stdout.splitlines()]
    assert [number for number, _ in generations] == ["0", "1"]
    assert all(0 < float(loss) < 1 for _, loss in generations)


def test_a_driver_of_ones_own_may_spread_a_model_over_gpus_alone():
    with pytest.raises(UserError, match=r"^--gpus-per-worker 2 with device cpu: "):
        evoray.open_pool("embedded", workers=0, device="cpu", gpus_per_worker=2)
