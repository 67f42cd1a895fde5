"""Every key of USB's own image configurations is known, or reported as a key without effect.

The tables below contain the keys that USB's files set, with the values of one of them, so that no checkout is needed.
With the variable USB_HEAD, every file of a checkout is read too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import semilearn
import yaml

from usb_rsmatch.data.sources.dataset_registry import dataset_names
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import training
from usb_rsmatch.usb.config import DEAD, resolve

# The keys of every file, with values as USB writes them, such as None and 5e-4.
EVERY: dict[str, Any] = yaml.safe_load(
    """
save_dir: ./saved_models, save_name: run, resume: True, load_path: ./saved_models/run/latest_model.pth, overwrite: True,
use_tensorboard: True, epoch: 1024, num_train_iter: 1048576, num_eval_iter: 5120, num_labels: 40, batch_size: 64,
eval_batch_size: 256, ema_m: 0.999, crop_ratio: 0.875, img_size: 32, optim: SGD, lr: 0.03, momentum: 0.9,
weight_decay: 5e-4, amp: False, clip: 0.0, net: wrn_28_2, net_from_name: False, data_dir: ./data, dataset: cifar10,
train_sampler: RandomSampler, num_classes: 10, num_workers: 1, seed: 0, world_size: 1, rank: 0,
multiprocessing_distributed: True, dist_url: "tcp://127.0.0.1:10001", dist_backend: nccl, gpu: None, layer_decay: 1.0,
num_log_iter: 256, use_cat: True, use_wandb: False, uratio: 7, ulb_loss_ratio: 1.0
""".strip().join("{}")
)
SUITES: dict[str, dict[str, Any]] = {
    "classic_cv": {},
    "usb_cv": {
        "optim": "AdamW", "lr": "5e-4", "num_warmup_iter": 5120, "use_pretrain": True, "net": "vit_small_patch2_32",
        "pretrain_path": "https://example.org/vit.pth", "batch_size": 8, "uratio": 1, "layer_decay": 0.5,
    },
}  # fmt: skip
PSEUDO = {"hard_label": True, "T": 0.5, "p_cutoff": 0.95}
GRAPH = {
    "T": 0.2, "p_cutoff": 0.95, "proj_size": 64, "smoothing_alpha": 0.9, "da_len": 32, "queue_batch": 5, "K": 256,
    "contrast_p_cutoff": 0.8, "contrast_loss_ratio": 1.0, "in_loss_ratio": 1.0, "use_epass": False,
}  # fmt: skip
ALGORITHMS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "fullysupervised": {},
    "pimodel": {"unsup_warm_up": 0.4},
    "meanteacher": {"unsup_warm_up": 0.4},
    "pseudolabel": {"p_cutoff": 0.95, "unsup_warm_up": 0.4},
    "vat": {"unsup_warm_up": 0.3},
    "mixmatch": {"mixup_alpha": 0.5, "T": 0.5, "unsup_warm_up": 0.4},
    "remixmatch": {"mixup_alpha": 0.75, "T": 0.5, "kl_loss_ratio": 0.5, "rot_loss_ratio": 0.5, "unsup_warm_up": 1 / 64},
    "uda": {"tsa_schedule": "none", "T": 0.4, "p_cutoff": 0.8},
    "fixmatch": PSEUDO,
    "defixmatch": PSEUDO,
    "refixmatch": PSEUDO,
    "adamatch": {**PSEUDO, "ema_p": 0.999},
    "flexmatch": {**PSEUDO, "thresh_warmup": True, "use_refix": True},
    "sequencematch": {**PSEUDO, "thresh_warmup": True},
    "freematch": {"hard_label": True, "T": 0.5, "ema_p": 0.999, "ent_loss_ratio": 0.001, "use_quantile": False,
                  "clip_thresh": False},
    "softmatch": {"hard_label": True, "T": 0.5, "dist_align": True, "dist_uniform": True, "per_class": False,
                  "ema_p": 0.999, "n_sigma": 2},
    "dash": {"T": 0.5, "num_wu_iter": 2048, "gamma": 1.27, "C": 1.0001, "rho_min": 0.05, "p_cutoff": 0.95},
    "crmatch": {**PSEUDO},
    "comatch": {key: value for key, value in GRAPH.items() if key != "in_loss_ratio"} | {"hard_label": False},
    "simmatch": {key: value for key, value in GRAPH.items() if not key.startswith("contrast")},
}  # fmt: skip
IMBALANCED = {"lb_imb_ratio": 10, "ulb_imb_ratio": -10.0, "ulb_num_labels": "None", "dist_align_target": "none"}
NETWORKS = (
    "wrn_28_2", "wrn_var_37_2", "resnet50", "vit_tiny_patch2_32", "vit_small_patch2_32", "vit_small_patch16_224",
    "vit_base_patch16_96",
)  # fmt: skip
DATASETS = (
    "cifar10", "cifar100", "svhn", "stl10", "imagenet", "imagenet127", "eurosat", "tissuemnist", "semi_aves",
    "semi_inat",
)  # fmt: skip


def only_ineffective_keys(notes: list[str], algorithm: str) -> bool:
    """Whether each note is about a key without effect, or about one that the file's algorithm does not read."""
    return all(
        note.split()[0] in DEAD or note.endswith(f"it belongs to another algorithm than {algorithm}") for note in notes
    )


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_of_usbs_files_are_known_or_reported(algorithm: str, suite: str) -> None:
    given = {**EVERY, **SUITES[suite], **ALGORITHMS[algorithm], "algorithm": algorithm}
    config, notes = resolve(given)
    assert only_ineffective_keys(notes, algorithm), notes
    assert {note.split()[0] for note in notes} >= {"clip", "resume", "overwrite", "gpu"}
    for key, value in given.items():
        if key in vars(config) and value not in ("None", None):
            kind = type(vars(config)[key])
            assert vars(config)[key] == kind(value), key
    assert config.algorithm == algorithm and isinstance(config.lr, float)


def test_keys_of_usbs_imbalanced_files_are_known_or_reported() -> None:
    config, notes = resolve({**EVERY, **ALGORITHMS["fixmatch"], **IMBALANCED, "imb_algorithm": "abc"})
    assert only_ineffective_keys(notes, "fixmatch") and config.ulb_num_labels is None and config.ulb_imb_ratio == -10


def test_a_misspelt_key_among_usbs_keys_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key 'p_cutof'.*p_cutoff"):
        resolve({**EVERY, "p_cutof": 0.9})


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_usbs_files_exist(name: str) -> None:
    assert callable(semilearn.get_net_builder(name, False))


def test_data_sets_of_usbs_files_accept_synthetic_images() -> None:
    assert set(DATASETS) <= set(dataset_names())


DEFAULT_RUNS = ("softmatch", "refixmatch")


@pytest.mark.parametrize(
    "algorithm",
    [name if name in DEFAULT_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS],
)
def test_a_file_of_usb_runs_with_synthetic_images(algorithm: str, tiny: dict[str, Any]) -> None:
    """With the file's own keys, except for a small data set, a small network and few steps."""
    short = {**tiny, "num_train_iter": 2, "epoch": 1, "num_eval_iter": 2, "num_wu_iter": 2, "num_workers": 0}
    short = {key: value for key, value in short.items() if key != "num_wu_iter" or algorithm == "dash"}
    short |= {"algorithm": algorithm, "img_size": 32, "use_tensorboard": False}
    config = {**EVERY, **ALGORITHMS[algorithm], **short}
    notes: list[str] = []
    result = training.train(config, note=notes.append)
    assert result["pool"]["by_generator"] == {"blend": 200} and result["iterations"] == 2
    assert only_ineffective_keys(
        [note.removeprefix("note: ") for note in notes if note.startswith("note: ")], algorithm
    )


@pytest.mark.skipif("USB_HEAD" not in os.environ, reason="set USB_HEAD to a checkout of USB to read its files")
@pytest.mark.parametrize("suite", SUITES)
def test_every_file_of_a_checkout_resolves(suite: str) -> None:
    files = sorted((Path(os.environ["USB_HEAD"]) / "config" / suite).rglob("*.yaml"))
    assert len(files) > 150
    unknown = set()
    for path in files:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError:
            assert (
                path.name == "refixmatch_cifar100_10000_0.yaml"
            )  # contains the conflict markers of an unfinished merge
            with pytest.raises(UserError, match="not valid YAML"):
                resolve(path)
            continue
        config, notes = resolve(path)
        assert only_ineffective_keys(notes, config.algorithm), (path.name, notes)
        assert config.dataset in DATASETS and config.net in NETWORKS, path.name
        known = EVERY.keys() | SUITES["usb_cv"].keys() | ALGORITHMS[config.algorithm].keys() | IMBALANCED.keys()
        unknown |= {(config.algorithm, key) for key in content if key not in {*known, "algorithm", "include_lb_to_ulb"}}
    assert unknown == set(), "keys of USB's that the tables above lack"


def test_use_epass_is_honoured_where_semilearn_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of USB's repository read it, those of the wheel do not."""
    from semilearn.core.utils import ALGORITHMS

    base: Any = ALGORITHMS["comatch"]
    wheel = type("CoMatch", (base,), {"__module__": base.__module__})

    class Head(wheel):  # type: ignore[misc, valid-type]
        def set_model(self) -> Any:
            return super().set_model(), self.args.use_epass

    monkeypatch.setitem(ALGORITHMS._dict, "comatch", Head)
    args, notes = resolve({"algorithm": "comatch", "use_epass": True})
    assert args.use_epass is True and notes == []
    assert resolve({"algorithm": "comatch"})[0].use_epass is False
    with pytest.raises(UserError, match="use_epass takes true or false"):
        resolve({"algorithm": "comatch", "use_epass": 3})
    args, notes = resolve({"algorithm": "fixmatch", "use_epass": True})
    assert not hasattr(args, "use_epass") and "one projection head" in notes[0]
