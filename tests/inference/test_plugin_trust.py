"""Modules that only a run folder or an exported file names are not imported without the user's permission."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from usb_rsmatch import load_run
from usb_rsmatch.cli import main
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.export import export, load_exported

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "eval": ["eval", "{run}"],
    "predict": ["predict", "{images}", "--run", "{run}", "--out", "{tmp}/predicted.csv"],
    "audit": ["audit", "{images}", "--run", "{run}", "--out", "{tmp}/audit.csv"],
    "export": ["export", "{run}", "--format", "torch-export", "--out", "{tmp}/model.pt2"],
}


@pytest.fixture
def foreign(finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run that names a module, which can be found and leaves a file when it is imported."""
    folder = tmp_path / "foreign"
    shutil.copytree(finished["rsmatch"], folder)
    name_plugins(folder, ["usb_rsmatch_foreign"])
    code = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    (tmp_path / "usb_rsmatch_foreign.py").write_text(code)  # a name that begins as ours do
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "usb_rsmatch_foreign", raising=False)
    return folder


def name_plugins(folder: Path, plugins: Any) -> None:
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**saved, "plugins": plugins}))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_in_one_line_and_imports_nothing(
    command: str, foreign: Path, digit_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(run=foreign, images=digit_files, tmp=tmp_path) for word in COMMANDS[command]]
    for more in ([], ["--plugin", "another"]):
        assert main([*words, *more]) == 2
        err = capsys.readouterr().err
        assert "'usb_rsmatch_foreign'" in err and "--trust-plugins" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "imported").exists() and "usb_rsmatch_foreign" not in sys.modules
    assert main([*words, "--plugin", "usb_rsmatch_foreign"]) == 0
    assert (tmp_path / "imported").exists()


def test_all_plugins_of_a_run_can_be_trusted(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="usb_rsmatch_foreign"):
        load_run(foreign, device="cpu")
    assert not (tmp_path / "imported").exists()
    assert main(["eval", str(foreign), "--trust-plugins"]) == 0
    assert (tmp_path / "imported").exists()


def test_modules_of_this_package_are_always_trusted(foreign: Path) -> None:
    name_plugins(foreign, ["usb_rsmatch.algorithms.ways", "usb_rsmatch.algorithms.rsmatch_variants"])
    assert load_run(foreign, device="cpu", note=lambda line: None).has_detector


@pytest.mark.parametrize("plugins", ["usb_rsmatch_foreign", {"usb_rsmatch_foreign": 1}, [["usb_rsmatch_foreign"]], [7]])
def test_other_values_than_a_list_of_names_are_refused(plugins: Any, foreign: Path, tmp_path: Path) -> None:
    name_plugins(foreign, plugins)
    with pytest.raises(UserError):
        load_run(foreign, device="cpu", note=lambda line: None)
    assert not (tmp_path / "imported").exists()


def test_pretrained_weights_that_a_run_names_are_not_fetched(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = yaml.safe_load((foreign / "config.yaml").read_text())
    saved |= {"plugins": [], "use_pretrain": True, "pretrain_path": "http://127.0.0.1:9/weights.pth"}
    (foreign / "config.yaml").write_text(yaml.safe_dump(saved))
    assert load_run(foreign, device="cpu").config.use_pretrain is True


def test_an_exported_file_is_treated_the_same(foreign: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "model.safetensors"
    export(load_run(foreign, device="cpu", plugins=["usb_rsmatch_foreign"]), "safetensors", path)
    (tmp_path / "imported").unlink()
    del sys.modules["usb_rsmatch_foreign"]
    with pytest.raises(UserError, match="usb_rsmatch_foreign"):
        load_exported(path)
    assert not (tmp_path / "imported").exists()
    load_exported(path, trust_plugins=True)
    assert (tmp_path / "imported").exists()


def calls() -> list[tuple[str, str, dict[str, Any]]]:
    """Every call in the package: file, name such as torch.load, and constant keyword arguments."""
    found = []
    for path in sorted((ROOT / "usb_rsmatch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
                found.append((path.relative_to(ROOT / "usb_rsmatch").as_posix(), ast.unparse(node.func), keywords))
    return found


def test_no_call_of_the_package_runs_code_from_a_file() -> None:
    """The exceptions: objects between the processes of one job, and corrected lines of semilearn itself."""
    loads = [(file, k.get("weights_only")) for file, name, k in calls() if name == "torch.load"]
    assert len(loads) >= 4 and {file for file, only in loads if only is not True} == {"distributed.py"}
    arrays = [(file, k.get("allow_pickle")) for file, name, k in calls() if name in ("np.load", "numpy.load")]
    assert len(arrays) >= 8 and [file for file, allowed in arrays if allowed is not False] == []
    risky = {"pickle.load", "pickle.loads", "exec", "eval", "marshal.loads", "yaml.unsafe_load", "yaml.full_load"}
    assert {(file, name) for file, name, _ in calls() if name in risky} == {
        ("distributed.py", "pickle.loads"),
        ("usb/compat.py", "exec"),
    }
    assert not [file for file, _, keywords in calls() if keywords.get("trust_remote_code")]
