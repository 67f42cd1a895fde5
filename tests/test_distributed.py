"""Training in several processes: equivalent to a single process, and resumed with any number of processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from semilearn.core.utils import ALGORITHMS

from benchmarks.faults.forked_commands import ForkedCommand
from usb_rsmatch.usb import checkpoint

# A network without BatchNorm in float64, and mixins that convert its inputs to float64.
PLUGIN = """
import json, os
from pathlib import Path
import torch
from torch import nn
import semilearn.nets as nets
from usb_rsmatch.usb import mixins

class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU())
        self.num_features = 16
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x, only_fc=False, only_feat=False, **kwargs):
        if only_fc:
            return self.fc(x)
        feat = self.convs(x).mean((2, 3))
        return feat if only_feat else {"logits": self.fc(feat), "feat": feat}

def in_doubles(module, given):
    return tuple(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given)

class InDoubles:
    def set_model(self):
        return self._doubled(super().set_model())

    def process_batch(self, *given, **batch):
        sent = super().process_batch(*given, **batch)
        return {key: value.double() if value.is_floating_point() else value for key, value in sent.items()}

    def set_ema_model(self):
        return self._doubled(super().set_ema_model())

    @staticmethod
    def _doubled(model):
        for module in model.double().modules():
            if not list(module.children()):
                module.register_forward_pre_hook(in_doubles)
        return model

nets.plain = lambda num_classes, pretrained=False, pretrained_path=None: Plain(num_classes)
compose_run_class = mixins.compose_run_class
if not hasattr(compose_run_class, "doubled"):
    def compose_doubled(*given, **options):
        kind = compose_run_class(*given, **options)
        return type(kind.__name__, (InDoubles, kind), {"__module__": kind.__module__})
    compose_doubled.doubled = True
    mixins.compose_run_class = compose_doubled
"""


@pytest.fixture
def plain(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """20 steps of a network without BatchNorm in float64, with thresholds that some images pass from the start."""
    (tmp_path / "doubles.py").write_text(PLUGIN)
    tiny |= {"plugins": ["doubles"], "net": "plain", "p_cutoff": 0.15, "rs_warmup": 0.2, "rs_queue_length": 4}
    tiny |= {"epoch": 2, "num_train_iter": 20, "num_eval_iter": 20, "num_log_iter": 1, "lr": 0.1}
    tiny |= {"rs_loader": "batched"}
    return tiny


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(config: dict[str, Any], folder: Path, count: int) -> list[ForkedCommand]:
    """Start the processes of one run as torchrun does, each with its rank in the environment."""
    path, port = folder / f"{config['save_name']}.yaml", free_port()
    path.write_text(yaml.safe_dump(config))

    def prepare(rank: int) -> Any:
        def act() -> None:
            os.chdir(folder)
            torch.set_num_threads(1)
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in variables.items()}, MASTER_ADDR="127.0.0.1")

        return act

    argv = ["train", "--c", str(path)]
    return [ForkedCommand(argv, folder / f"{config['save_name']}.{rank}.log", prepare(rank)) for rank in range(count)]


def run_with(config: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """Train with that many processes; returns the checkpoint."""
    children = start(config, folder, count)
    codes = [child.wait() for child in children]
    assert codes == [0] * count, "\n".join(child.output() for child in children)
    return checkpoint.read(Path(config["save_dir"]) / config["save_name"] / "latest_model.pth")


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The greatest difference of the weights, plain and averaged."""
    assert first["model"].keys() == second["model"].keys()
    pairs = [(first[part][name], second[part][name]) for part in ("model", "ema_model") for name in first[part]]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


CASES = [
    ("fixmatch", {}),
    ("rsmatch", {}),
    ("flexmatch", {"thresh_warmup": True}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("fixmatch", {"rs_loader": "pil"}),
            ("rsmatch", {"rs_loader": "pil"}),
            ("rsmatch", {"rs_detector_input": "feature"}),
            ("rsmatch", {"rs_base": "freematch"}),
            ("freematch", {}),
            ("softmatch", {}),
            ("fixmatch", {"net": "small_wrn_10_1"}),  # BatchNorm of the whole batch
            ("rsmatch", {"net": "small_wrn_10_1"}),  # split BatchNorm
            ("rsmatch", {"net": "small_wrn_10_1", "use_cat": False, "rs_norm": "shared"}),
        )
    ),
]


@pytest.mark.parametrize(("algorithm", "keys"), CASES, ids=lambda case: str(case))
def test_two_processes_are_equivalent_to_one(
    algorithm: str, keys: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    """After 20 steps in float64 the weights agree within 1e-12; queue, scores and thresholds are the same."""
    plain |= {"algorithm": algorithm, **keys}
    one = run_with({**plain, "save_name": "one"}, tmp_path, 1)
    two = run_with({**plain, "save_name": "two"}, tmp_path, 2)
    weights = torch.load(Path(plain["save_dir"]) / "one" / "latest_model.pth", weights_only=True)["model"]
    assert all(tensor.dtype == torch.float64 for tensor in weights.values() if tensor.is_floating_point())
    assert distance(one, two) < 1e-12
    states = [content[checkpoint.KEY]["hooks"] for content in (one, two)]
    if algorithm == "rsmatch":
        first, second = (state["SyntheticDetectionHook"] for state in states)
        assert torch.equal(first["queue"]["indices"], second["queue"]["indices"])
        assert (first["queue"]["indices"] >= 0).sum() >= 4
        assert torch.allclose(first["scores"], second["scores"], rtol=0, atol=1e-6, equal_nan=True)
    if algorithm == "flexmatch":
        first, second = (state["MaskingHook"] for state in states)
        assert torch.equal(first["selected_label"], second["selected_label"]) and (first["selected_label"] >= 0).any()
    lines = [(Path(plain["save_dir"]) / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert [json.loads(line)["it"] for line in lines[1]] == [json.loads(line)["it"] for line in lines[0]]


def test_a_run_resumes_with_another_number_of_processes(plain: dict[str, Any], tmp_path: Path) -> None:
    """Two processes, stopped by a signal to one of them; then one process; then three."""
    plain |= {"algorithm": "rsmatch", "batch_size": 6, "rs_warmup": 0.0}
    whole = run_with({**plain, "save_name": "whole"}, tmp_path, 1)
    path = Path(plain["save_dir"]) / "run" / "metrics.jsonl"
    for count, step in ((2, 4), (1, 10)):
        children = start({**plain}, tmp_path, count)
        reached = children[0].wait_for(lambda step=step: path.exists() and f'"it": {step},' in path.read_text())
        assert reached, children[0].output()
        children[-1].send(signal.SIGTERM)
        assert [child.wait() for child in children] == [130] * count, children[0].output()
        assert "Traceback" not in "".join(child.output() for child in children)
    assert distance(whole, run_with({**plain}, tmp_path, 3)) < 1e-12


def test_a_killed_process_ends_the_run_with_a_message(plain: dict[str, Any], tmp_path: Path) -> None:
    plain |= {"num_train_iter": 400, "num_eval_iter": 5}
    folder = Path(plain["save_dir"]) / "run"
    children = start(plain, tmp_path, 2)
    assert children[0].wait_for(lambda: (folder / "latest_model.pth").exists()), children[0].output()
    children[1].send(signal.SIGKILL)
    assert children[1].wait() == -signal.SIGKILL and children[0].wait(60) == 1, children[0].output()
    message = children[0].output().splitlines()[-1]
    assert "process 0 of 2: run: " in message and "has another process ended?" in message
    content, note = checkpoint.read_latest(folder)
    assert content is not None and note is None and content["it"] % 5 == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 5}, "batch_size 5 is not divisible by the number of processes, 2"),
        ({"real_count": 10**6}, "real_count"),
        ({"lr": 1e200}, "the loss is"),
    ],
)
def test_an_error_is_reported_by_every_process_and_ends_all(
    keys: dict[str, Any], message: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    children = start({**plain, **keys}, tmp_path, 2)
    code = 1 if "lr" in keys else 2
    assert [child.wait(60) for child in children] == [code, code], children[0].output()
    outputs = [child.output().splitlines() for child in children]
    assert (
        message in outputs[0][-1]
        and message in outputs[1][-1]
        and outputs[1][-1].startswith("usb-rsmatch (process 1): ")
    )
    assert "Traceback" not in str(outputs)


def test_every_process_restores_its_global_generators(plain: dict[str, Any], tmp_path: Path) -> None:
    """A resumed run with two processes equals the uninterrupted one bit for bit; MixMatch draws from them."""
    plain |= {"algorithm": "mixmatch"}
    whole = run_with({**plain, "save_name": "whole"}, tmp_path, 2)
    path = Path(plain["save_dir"]) / "run" / "metrics.jsonl"
    children = start(plain, tmp_path, 2)
    assert children[0].wait_for(lambda: path.exists() and '"it": 3,' in path.read_text()), children[0].output()
    children[0].send(signal.SIGINT)
    assert [child.wait() for child in children] == [130, 130]
    stopped = run_with(plain, tmp_path, 2)
    assert checkpoint.digest(whole["model"]) == checkpoint.digest(stopped["model"])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS.keys()) - {"multimatch"}))
def test_every_algorithm_trains_with_two_processes(algorithm: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny |= {"algorithm": algorithm, "num_train_iter": 4, "num_eval_iter": 4, "num_wu_iter": 2, "rs_loader": "batched"}
    if algorithm in ("scomatch", "uasd"):
        assert [child.wait() for child in start(tiny, tmp_path, 2)] == [2, 2]
        assert "start it without torchrun" in (tmp_path / "run.0.log").read_text()
    else:
        assert run_with(tiny, tmp_path, 2)["it"] == 4


@pytest.mark.slow
def test_torchrun_itself(plain: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**plain, "algorithm": "rsmatch"}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "usb_rsmatch", "train", "--c", "c.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy") == 2  # at the evaluation and at the end, by the first process only
    one = run_with({**plain, "algorithm": "rsmatch", "save_name": "one"}, tmp_path, 1)
    assert distance(one, checkpoint.read(Path(plain["save_dir"]) / "run" / "latest_model.pth")) < 1e-12


@pytest.mark.parametrize("net", ["test_efficientnet", "resnet10t"])
def test_distributed_batchnorm_of_a_network_of_timm_is_equivalent_to_its_own(net: str) -> None:
    """With one process: outputs and running statistics of a training pass, also of BatchNorm with an activation."""
    import timm
    import torch.distributed as dist

    from usb_rsmatch.algorithms.distributed_batchnorm import use_distributed_batchnorm

    torch.manual_seed(0)
    plain, distributed = (timm.create_model(net, num_classes=4).double().train() for _ in range(2))
    distributed.load_state_dict(plain.state_dict())
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        use_distributed_batchnorm(distributed)
        assert torch.allclose(distributed(images), plain(images), atol=1e-9)
    finally:
        dist.destroy_process_group()
    own = plain.state_dict()
    assert all(torch.allclose(tensor, own[name]) for name, tensor in distributed.state_dict().items())
