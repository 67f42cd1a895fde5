"""Generate the configurations in config/classic_cv/ and config/usb_cv/, and the grids in config/paper/.

config/classic_cv/ has one file per algorithm (RSMatch and the open-set baselines), data set, number of labels and seed.
The settings are those of USB's FixMatch, except what the authors of an open-set baseline publish.
config/usb_cv/ has the same algorithms on USB's pretrained ViTs, with the settings of USB's FixMatch there.
config/paper/ has the grids of the RS-SSL benchmark, one file per data set.

    python config/make_configs.py           # write the files that are missing or differ
    python config/make_configs.py --check   # write nothing; list these files, exit code 1 if there are any
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
HEADER = "# Made by config/make_configs.py: change it there.\n"


@dataclass(frozen=True)
class Benchmark:
    """A data set: its settings in USB's classic_cv configurations, and the synthetic images that are added."""

    dataset: str
    generator: str
    source: str
    labels: tuple[int, ...]
    num_classes: int = 10
    img_size: int = 32
    net: str = "wrn_28_2"
    decay: float = 5e-4


BENCHMARKS = (
    Benchmark("cifar10", "edm", "npz:./data/edm/cifar10_1m.npz", (40, 250, 4000)),
    Benchmark("cifar100", "edm", "npz:./data/edm/cifar100_1m.npz", (400, 2500, 10000), 100, decay=1e-3),
    Benchmark("svhn", "edm", "npz:./data/edm/svhn_1m.npz", (40, 250, 1000)),
    Benchmark("stl10", "sd14", "folder:./data/sd14/stl10", (40, 250, 1000), img_size=96, net="wrn_var_37_2"),
)


@dataclass(frozen=True)
class FineTuned:
    """A data set of USB's usb_cv configurations: its pretrained ViT and its settings of AdamW."""

    benchmark: Benchmark
    weights: str
    lr: float
    layer_decay: float
    crop_ratio: float = 0.875
    count: int = 10_000  # synthetic images (ours)


USB_RELEASE = "https://github.com/microsoft/Semi-supervised-learning/releases/download/v.0.0.0/"
SMALL, TINY, SD14 = "vit_small_patch2_32", "vit_tiny_patch2_32", "folder:./data/sd14/"
FINE_TUNED = (
    FineTuned(
        Benchmark("cifar100", "edm", "npz:./data/edm/cifar100_1m.npz", (200, 400), 100, net=SMALL),
        f"{SMALL}_mlp_im_1k_32.pth",
        lr=5e-4,
        layer_decay=0.5,
        count=50_000,
    ),
    FineTuned(
        Benchmark("stl10", "sd14", f"{SD14}stl10", (40, 100), img_size=96, net="vit_base_patch16_96"),
        "mae_pretrain_vit_base.pth",
        lr=1e-4,
        layer_decay=0.65,
        count=50_000,
    ),
    FineTuned(
        Benchmark("eurosat", "sd14", f"{SD14}eurosat", (20, 40), net=SMALL), f"{SMALL}_mlp_im_1k_32.pth", 5e-5, 1.0
    ),
    FineTuned(
        Benchmark("tissuemnist", "sd14", f"{SD14}tissuemnist", (80, 400), 8, net=TINY),
        f"{TINY}_mlp_im_1k_32.pth",
        lr=5e-5,
        layer_decay=0.95,
        crop_ratio=0.95,
    ),
    FineTuned(
        Benchmark("semi_aves", "sd14", f"{SD14}semi_aves", (3959,), 200, img_size=224, net="vit_small_patch16_224"),
        "vit_small_patch16_224_mlp_im_1k_224.pth",
        lr=1e-3,
        layer_decay=0.65,
    ),
)


@dataclass(frozen=True)
class Method:
    """An algorithm: its own keys, published changes of USB's FixMatch settings, and further keys for the file's end."""

    name: str
    own: dict[str, Any]
    published: dict[str, Any] = field(default_factory=dict)
    tail: dict[str, Any] = field(default_factory=dict)


RSMATCH = Method(
    "rsmatch",
    own={"hard_label": True, "T": 0.5, "p_cutoff": 0.95},
    tail={
        "rs_base": "fixmatch",
        "rs_detector": "csqueue",
        "rs_detector_input": "residual",
        "rs_pseudo_fakes": "components",
        "rs_queue": "classwise",
        "rs_queue_length": 32,
        "rs_synthetic_to": "both",
        "rs_norm": "split",
        "rs_threshold": 0.5,
        "rs_warmup": 0.2,
        "rs_lambda_syn": 1.0,
        "rs_lambda_det": 1.0,
        "rs_loader": "pil",
        "rs_fast": False,
        "rs_eval_bf16": False,
        "rs_compile": False,
        "rs_on_nan": "stop",
    },
)
# CIFAR-10 settings of the authors' repositories: VisionLearningGroup/OP_Match, nukezil/IOMatch, komejisatori/SCOMatch,
# yanbeic/ssl-class-mismatch. UASD's are for Adam and for batches of another composition: we only use its length.
OPEN_SET = (
    Method(
        "openmatch",
        own={"p_cutoff": 0.0, "lambda_em": 0.1, "lambda_socr": 0.5, "start_fix": 10 / 512},
        published={"epoch": 512, "num_train_iter": 2**19, "num_eval_iter": 1024, "uratio": 2},
    ),
    Method(
        "iomatch",
        own={"p_cutoff": 0.95, "q_cutoff": 0.5, "dist_align": False, "op_warmup": 1 / 256},
        published={"epoch": 256, "num_train_iter": 2**18, "num_eval_iter": 1024},
    ),
    Method(
        "scomatch",
        own={"p_cutoff": 0.95, "T": 1.0, "sco_enqueue": 1},
        published={"epoch": 512, "num_train_iter": 2**19, "num_eval_iter": 1024, "uratio": 2},
    ),
    Method(
        "uasd",
        own={"uasd_start": 0.2, "uasd_ramp": 0.4},
        published={"epoch": 500, "num_train_iter": 500_000, "num_eval_iter": 5000},
    ),
)

PAPER = """# The RS-SSL benchmark (arXiv 2405.16930): its data sets and generators, and baselines of the same kinds.
# NOT YET RUN HERE: no GPU was available, so no result is claimed.
# We could not obtain its numbers of labels, shares of synthetic images and training lengths: these are our settings.
# Synthetic images are read from ./data/synthetic/GENERATOR/{dataset}/CLASS/.
#
#     usb-rsmatch compare --c paper/{dataset} --dry-run    # lists the runs and estimates their time on your GPU
#     usb-rsmatch compare --c paper/{dataset} --jobs 1
#
# Cost: {runs} runs of {steps:,} steps. At {pace} steps a second (a guess, not a measurement), this takes
# {hours:,} GPU hours: use a cluster, `--num_train_iter 131072` for an eighth of the steps, or `--shard I/N`.
"""
GENERATORS = ("glide", "sd14", "sdxl_lightning")


@dataclass(frozen=True)
class Contamination:
    """A grid of the RS-SSL benchmark: shares of synthetic images in the pool, and changes of `settings`."""

    benchmark: Benchmark
    shares: tuple[float, ...] = (0.0, 0.25, 0.5)
    changes: dict[str, Any] = field(default_factory=dict)
    pace: float = 20  # steps per second on one GPU, a guess


GRIDS = (
    Contamination(BENCHMARKS[0]),
    Contamination(BENCHMARKS[1]),
    Contamination(Benchmark("tinyimagenet", "", "", (2000, 10000), 200, img_size=64, decay=1e-3), pace=8),
    Contamination(
        Benchmark("imagenet", "", "", (100_000,), 1000, img_size=224, net="resnet50", decay=3e-4),
        (0.0, 0.1, 0.25),
        {"uratio": 1, "num_log_iter": 1024},  # USB's settings for CoMatch on ImageNet
        pace=4,
    ),
)
USB_ALGORITHMS = {"FixMatch": "fixmatch", "FlexMatch": "flexmatch", "FreeMatch": "freematch", "SoftMatch": "softmatch"}
OPEN_SET_NAMES = {"OpenMatch": "openmatch", "IOMatch": "iomatch", "SCOMatch": "scomatch", "UASD": "uasd"}
BEYOND_CIFAR10 = {
    "openmatch": {"lambda_socr": 1.0},
    "iomatch": {"dist_align": True},
}  # the authors' settings for CIFAR-100


def settings(method: Method, benchmark: Benchmark, labels: int, seed: int) -> dict[str, Any]:
    """Return the keys and values of one run, in USB's order: USB's for FixMatch with the changes of the method."""
    values = {
        "algorithm": method.name,
        "save_dir": "./saved_models/classic_cv",
        "save_name": f"{method.name}_{benchmark.dataset}_{labels}_{seed}",
        "use_tensorboard": True,
        "epoch": 1024,
        "num_train_iter": 2**20,
        "num_eval_iter": 5120,
        "num_log_iter": 256,
        "num_labels": labels,
        "batch_size": 64,
        "eval_batch_size": 256,
        **method.own,
        "ulb_loss_ratio": 1.0,
        "uratio": 7,
        "ema_m": 0.999,
        "crop_ratio": 0.875,
        "img_size": benchmark.img_size,
        "optim": "SGD",
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": benchmark.decay,
        "layer_decay": 1.0,
        "amp": False,
        "use_cat": True,
        "net": benchmark.net,
        "net_from_name": False,
        "data_dir": "./data",
        "dataset": benchmark.dataset,
        "train_sampler": "RandomSampler",
        "num_classes": benchmark.num_classes,
        "num_workers": 1,
        "seed": seed,
        "synthetic": [{"source": benchmark.source, "generator": benchmark.generator, "count": 50000}],
    }
    return {**values, **method.published, **method.tail}


def fine_tuning(method: Method, tuned: FineTuned, labels: int, seed: int) -> dict[str, Any]:
    """Return the keys and values of one run on a pretrained ViT: USB's for FixMatch, with the method's own keys.

    ViTs have no BatchNorm, so that `rs_norm: split` would have no effect. Training lengths that authors of open-set
    baselines publish are for networks without pretraining: they are not used.
    """
    values = settings(Method(method.name, method.own, tail=method.tail), tuned.benchmark, labels, seed)
    changes = {
        "save_dir": "./saved_models/usb_cv",
        "epoch": 200,
        "num_train_iter": 204_800,
        "num_eval_iter": 2048,
        "num_warmup_iter": 5120,
        "batch_size": 8,
        "eval_batch_size": 16,
        "uratio": 1,
        "ema_m": 0.0,
        "crop_ratio": tuned.crop_ratio,
        "optim": "AdamW",
        "lr": tuned.lr,
        "layer_decay": tuned.layer_decay,
        "num_workers": 4,
        "use_pretrain": True,
        "pretrain_path": USB_RELEASE + tuned.weights,
        "synthetic": [{**values["synthetic"][0], "count": tuned.count}],
        **BEYOND_CIFAR10.get(method.name, {}),
    }
    return {**values, **changes, **({"rs_norm": "shared"} if method.tail else {})}


def grid(contamination: Contamination) -> dict[str, Any]:
    """Return the content of a grid file: labels x shares of synthetic images x seeds x algorithms."""
    benchmark = contamination.benchmark
    own = {*RSMATCH.own, *RSMATCH.tail, "algorithm", "save_dir", "save_name", "num_labels", "seed", "use_tensorboard"}
    config = {key: value for key, value in settings(RSMATCH, benchmark, 0, 0).items() if key not in own}
    sources = [
        {"source": f"folder:./data/synthetic/{name}/{benchmark.dataset}", "generator": name} for name in GENERATORS
    ]
    open_set = {method.name: dict(method.own) for method in OPEN_SET}
    if benchmark.dataset != "cifar10":
        open_set = {name: {**own, **BEYOND_CIFAR10.get(name, {})} for name, own in open_set.items()}
    arms: dict[str, dict[str, Any]] = {"Supervised": {"algorithm": "supervised", "synthetic_ratio": 0.0}}
    arms |= {shown: {"algorithm": name} for shown, name in USB_ALGORITHMS.items()}
    arms |= {shown: {"algorithm": name, **open_set[name]} for shown, name in OPEN_SET_NAMES.items()}
    arms |= {"RSMatch": {"algorithm": "rsmatch", **RSMATCH.own, **RSMATCH.tail}}
    return {
        "name": f"paper_{benchmark.dataset}",
        "config": {**config, **contamination.changes, "synthetic": sources},
        "axes": {
            "num_labels": list(benchmark.labels),
            "synthetic_ratio": list(contamination.shares),
            "seed": list(SEEDS),
        },
        "arms": arms,
        "baseline": "FixMatch",
    }


def cost(contamination: Contamination) -> dict[str, int | float]:
    """Return the cost of a grid: runs, steps per run, guessed steps per second, and total GPU hours."""
    content = grid(contamination)
    labels, shares, seeds = (len(content["axes"][key]) for key in ("num_labels", "synthetic_ratio", "seed"))
    spread = sum(1 if "synthetic_ratio" in own else shares for own in content["arms"].values())
    runs, steps = labels * seeds * spread, content["config"]["num_train_iter"]
    hours = round(runs * steps / contamination.pace / 3600)
    return {"runs": runs, "steps": steps, "pace": contamination.pace, "hours": hours}


def configs() -> dict[str, str]:
    """Return the text of each generated file by its path relative to this folder."""
    pairs = [(benchmark, labels) for benchmark in BENCHMARKS for labels in benchmark.labels]
    runs = [(RSMATCH, *pair, seed) for pair in pairs for seed in SEEDS]
    runs += [(method, BENCHMARKS[0], labels, 0) for method in OPEN_SET for labels in BENCHMARKS[0].labels]
    pretrained = [(tuned, labels) for tuned in FINE_TUNED for labels in tuned.benchmark.labels]
    tuned_runs = [(RSMATCH, *pair, seed) for pair in pretrained for seed in SEEDS]
    tuned_runs += [(method, *pair, 0) for method in OPEN_SET for pair in pretrained]
    files = {}
    contents = [("classic_cv", settings(*run)) for run in runs]
    contents += [("usb_cv", fine_tuning(*tuned_run)) for tuned_run in tuned_runs]
    for suite, values in contents:
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=200)
        files[f"{suite}/{values['algorithm']}/{values['save_name']}.yaml"] = HEADER + text
    for contamination in GRIDS:
        text = yaml.safe_dump(grid(contamination), sort_keys=False, default_flow_style=None, width=200)
        about = HEADER + PAPER.format(dataset=contamination.benchmark.dataset, **cost(contamination))
        files[f"paper/{contamination.benchmark.dataset}.yaml"] = about + text
    return files


def stale(folder: Path) -> dict[str, str]:
    """Return the generated files that are missing in `folder` or differ there."""
    paths = {name: folder / name for name in configs()}
    found = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}
    return {name: text for name, text in configs().items() if found.get(name) != text}


def main(argv: list[str] | None = None) -> int:
    """Run the script; return 0, or 1 if files are out of date with --check."""
    parser = argparse.ArgumentParser(description="Write the generated configurations.")
    parser.add_argument("--check", action="store_true", help="only list the files that are out of date")
    parser.add_argument("--out", type=Path, default=HERE, help="output folder (default: config/)")
    args = parser.parse_args(argv)
    changed = stale(args.out)
    for name, text in changed.items():
        print(f"{'out of date' if args.check else 'wrote'}: {args.out / name}")
        if not args.check:
            (args.out / name).parent.mkdir(parents=True, exist_ok=True)
            (args.out / name).write_text(text, encoding="utf-8")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
