"""The command that other repositories install: `uv tool install` of this one, into a folder of its own."""

import subprocess
import time

import pytest
from conftest import ROOT, step


@pytest.mark.clients
def test_the_installed_command(toy, tmp_path):
    """Light, quick, and the same loop; what it tells people to type begins with its own name."""
    where = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    subprocess.run(["uv", "tool", "install", "--quiet", str(ROOT)], check=True, env={**toy.environment, **where})
    files = [path for path in (tmp_path / "tools").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 100e6
    assert not [path for path in files if path.name in ("prepare.py", "train.py")]
    program = str(tmp_path / "bin/autoresearch")

    def call(*words: str) -> tuple[int, str]:
        ended = subprocess.run([program, *words], cwd=toy.folder, env=toy.environment, capture_output=True, text=True)
        return ended.returncode, ended.stdout + ended.stderr

    seconds = []
    for _ in range(3):  # the first one compiles
        began = time.monotonic()
        code, said = call("status")
        seconds.append(time.monotonic() - began)
    assert code == 2 and "there is no run" in said and min(seconds) < 3
    toy.plan_steps(e2=[step(5)])
    code, said = call(*toy.agent, "--tag", "night", "--experiments", "2", "--baseline-runs", "1")
    assert code == 0 and "stopped: " in said, said
    assert toy.statuses() == ["keep", "keep"]
    toy.require_whole()
    assert "`autoresearch logs --trial" in call("logs")[1]
    assert "uv tool install --with plotly" in call("watch")[1]
    (toy.folder / "program.md").unlink()
    assert "autoresearch plan" in call()[1]
