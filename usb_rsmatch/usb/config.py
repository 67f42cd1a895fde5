"""The configuration: USB's keys and ours in one typed table, read from YAML and flags and checked before a run."""

from __future__ import annotations

import hashlib
import inspect
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usb_rsmatch.data.pool.settings import POOL_KEYS, PoolConfig
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import Key, convert, is_rsmatch_variant, nearest
from usb_rsmatch.rsmatch_settings import RSMATCH_KEYS
from usb_rsmatch.usb.plain_values import plain, read_yaml
from usb_rsmatch.usb.shipped_configs import find_config

_USB = [
    Key("save_dir", "str", "./saved_models", "folder that contains the run folders"),
    Key("save_name", "str", None, "name of the run folder; default: derived from the configuration", optional=True),
    Key("use_tensorboard", "bool", False, "log to TensorBoard, in the run folder"),
    Key("use_wandb", "bool", False, "log to Weights & Biases"),
    Key("use_aim", "bool", False, "log to Aim"),
    Key("epoch", "int", 1, "number of epochs; must divide num_train_iter", low=1),
    Key("num_train_iter", "int", 20, "training steps", low=1),
    Key("num_warmup_iter", "int", 0, "steps of linear warm-up of the learning rate", low=0),
    Key("num_eval_iter", "int", 10, "steps between evaluations, each with a checkpoint", low=1),
    Key("num_log_iter", "int", 5, "steps between log lines", low=1),
    Key("batch_size", "int", 8, "labelled images per step", low=1, high=65536),
    Key("uratio", "int", 1, "unlabelled images per labelled image in a batch", low=1, high=1000),
    Key("eval_batch_size", "int", 16, "batch size at evaluation", low=1, high=1048576),
    Key("ema_m", "float", 0.999, "momentum of the averaged (EMA) weights, which are evaluated", low=0, high=1),
    Key("ulb_loss_ratio", "float", 1.0, "weight of the unlabelled loss (lambda_u)", low=0),
    Key("optim", "SGD|AdamW", "SGD", "optimiser"),
    Key("lr", "float", 0.03, "learning rate", low=0),
    Key("momentum", "float", 0.9, "momentum of SGD", low=0, high=1),
    Key("weight_decay", "float", 5e-4, "weight decay", low=0),
    Key("layer_decay", "float", 1.0, "layer-wise decay of the learning rate; 1: none", low=0, high=1),
    Key("net", "str", "wrn_28_2", "network: one of USB's, of ours (small_wrn_10_1, ...), of a plugin, or timm:NAME"),
    Key("net_from_name", "bool", False, "take `net` from torchvision.models"),
    Key("use_pretrain", "bool", False, "start from pretrained weights"),
    Key("pretrain_path", "str", "", "file or address of the pretrained weights; empty: timm's hub, for timm:NAME"),
    Key("algorithm", "str", "fixmatch", "any algorithm of USB, `rsmatch`, or one of a plugin"),
    Key("use_cat", "bool", True, "one joint forward pass for labelled and unlabelled images"),
    Key("amp", "bool", False, "mixed precision"),
    Key("clip_grad", "float", 0.0, "norm at which gradients are clipped; 0: no clipping", low=0),
    Key("imb_algorithm", "str", None, "an imbalanced algorithm of USB, applied on top", optional=True),
    Key("train_sampler", "str", "RandomSampler", "USB's sampler, for data sets that USB itself reads"),
    Key("num_workers", "int", 1, "worker processes of the labelled loader (twice as many for the unlabelled)", low=0),
    Key("crop_ratio", "float", 0.875, "random crops shift by up to (1 - crop_ratio) of the image side", low=0, high=1),
    Key("max_length", "int", 512, "longest text in tokens (USB's text data sets)"),
    Key("max_length_seconds", "float", 4.0, "longest sound in seconds (USB's audio data sets)"),
    Key("sample_rate", "int", 16000, "sample rate in Hz (USB's audio data sets)"),
]

_OURS = [
    Key("plugins", "list", [], "modules to import first: your own networks, sources, algorithms", "ours"),
    Key("device", "str", None, "auto, cpu or cuda", "ours", optional=True),
    Key(
        "start_from",
        "str",
        None,
        "checkpoint, of this package or of USB itself, from which a new run starts",
        "ours",
        optional=True,
    ),
    Key("net_kwargs", "mapping", {}, "further arguments of the network's builder, such as drop_path_rate", "ours"),
    Key(
        "net_size",
        "int",
        None,
        "side in pixels of the network's input (timm:NAME); default: the pretrained model's own, else img_size",
        "ours",
        low=8,
        high=4096,
        optional=True,
    ),
    Key(
        "freeze",
        "backbone|norm|none",
        "none",
        "part that is not trained: all of the network but its heads, or its normalisation layers",
        "ours",
    ),
    Key("grad_checkpointing", "bool", False, "less memory and more time: recompute activations (timm:NAME)", "ours"),
    Key("analysis", "bool", True, "at the end, write `analysis.npz` for the plots of the report", "ours"),
]

KEYS: dict[str, Key] = {key.name: key for key in (*_USB, *POOL_KEYS, *_OURS, *RSMATCH_KEYS)}

# Keys of USB's shipped configurations that have no effect there, here, or in both.
DEAD: dict[str, str] = {
    "clip": "USB reads clip_grad",
    "use_refix": "nothing reads it",
    "dist_align_target": "nothing reads it",
    "use_epass": "only comatch and simmatch of USB's repository read it: the wheel's have one projection head",
    "use_amp": "USB's algorithms read amp",
    "gpu": "the device is chosen by --device",
    "multiprocessing_distributed": "several processes are started by torchrun",
    "dist_url": "several processes are started by torchrun",
    "dist_backend": "several processes are started by torchrun",
    "world_size": "several processes are started by torchrun",
    "rank": "several processes are started by torchrun",
    "overwrite": "nothing is ever overwritten",
    "resume": "a run folder resumes where it stopped",
    "load_path": "a run folder resumes where it stopped; a new run can start from start_from",
    "c": "the configuration is given by --c",
}

# Keys that may differ between two starts of one run: they do not change its result.
NOT_IDENTITY = frozenset(
    {"save_dir", "save_name", "device", "num_workers", "use_tensorboard", "use_wandb", "use_aim", "data_dir"}
    | {"analysis"}
)
# Keys that change no weight: a run may be resumed with other values.
MAY_CHANGE = frozenset({"eval_batch_size", "num_log_iter", "num_eval_iter"})

LARGEST_BATCH = 262_144  # unlabelled images of a step, far above any published setting; more is a mistyped number

# Former names of this package's modules that configurations may name as plugins.
FORMER_PLUGINS = {"usb_rsmatch.algorithms.ways": "usb_rsmatch.algorithms.rsmatch_variants"}


def import_semilearn() -> None:
    """Import semilearn, which registers its algorithms and ours, without its deprecation warnings."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import semilearn  # noqa: F401


def algorithm_keys(algorithm: str, imbalanced: str | None, base: str | None = None) -> dict[str, Key]:
    """The keys that USB's algorithms declare by `get_argument`; imports semilearn."""
    from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS

    keys: dict[str, Key] = {}
    wanted = [(ALGORITHMS, algorithm), (IMB_ALGORITHMS, imbalanced), (ALGORITHMS, base)]
    for registry, name in wanted:
        if name is None:
            continue
        if name not in registry:
            raise UserError(f"unknown algorithm {name!r}{nearest(name, registry.keys())}")
        for argument in registry[name].get_argument():
            key = argument.name.lstrip("-")
            if key not in KEYS:
                kind = {"str2bool": "bool"}.get(argument.type.__name__, argument.type.__name__)
                keys[key] = Key(key, kind, argument.default, argument.help or "", optional=argument.default is None)
        if reads_epass(registry[name]):
            keys["use_epass"] = Key("use_epass", "bool", False, "three projection heads, averaged (EPASS), not one")
    return keys


def reads_epass(algorithm: type) -> bool:
    """Whether the networks of an algorithm read `use_epass`, which none of USB's algorithms declares: HEAD's do."""
    try:
        return "args.use_epass" in inspect.getsource(algorithm)
    except (OSError, TypeError):  # a class without source
        return False


def all_keys() -> dict[str, Key]:
    """Every key of every registered algorithm; imports semilearn."""
    from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS

    keys = dict(KEYS)
    for name in list(ALGORITHMS.keys()):
        keys.update(algorithm_keys(name, None))
    for name in list(IMB_ALGORITHMS.keys()):
        keys.update(algorithm_keys("fixmatch", name))
    return keys


def resolve(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> tuple[Namespace, list[str]]:
    """A checked configuration from a file, a shipped name or a mapping, and notes on keys without effect.

    Raises UserError, one line, for an unknown key or algorithm, a wrong type, or contradicting values.
    """
    if isinstance(config, Mapping):
        where, given = "configuration", plain(config, "configuration")
    else:
        path = find_config(str(config))
        where, given = str(config), read_yaml(path)
    given.update(plain(overrides or {}, where))
    given = {key.replace("-", "_"): value for key, value in given.items()}
    notes = []
    for module in map(str, convert(KEYS["plugins"], given.get("plugins", []), where)):
        if module in FORMER_PLUGINS:
            notes.append(f"plugin {module} is deprecated: its name is {FORMER_PLUGINS[module]} now")
        import_plugin(FORMER_PLUGINS.get(module, module))
    algorithm = convert(KEYS["algorithm"], given.get("algorithm", "fixmatch"), where)
    imbalanced = convert(KEYS["imb_algorithm"], given.get("imb_algorithm"), where)
    has_base_rule = is_rsmatch_variant(algorithm)
    base = convert(KEYS["rs_base"], given.get("rs_base", "fixmatch"), where) if has_base_rule else None
    known = {**KEYS, **algorithm_keys(algorithm, imbalanced, base)}
    dead = {key: why for key, why in DEAD.items() if key not in known}
    notes = [*(f"{key} has no effect: {dead[key]}" for key in given if key in dead), *notes]
    given = {key: value for key, value in given.items() if key not in dead}
    values: dict[str, Any] = {name: key.default for name, key in known.items()}
    all_known: dict[str, Key] | None = None
    for name, value in given.items():
        if name in known:
            values[name] = convert(known[name], value, where)
            continue
        all_known = all_keys() if all_known is None else all_known
        if name not in all_known:
            raise UserError(f"{where}: unknown key {name!r}{nearest(name, all_known)}")
        notes.append(f"{name} has no effect: it belongs to another algorithm than {algorithm}")
    check(values, where)
    return Namespace(**values), notes


def check(values: dict[str, Any], where: str) -> None:
    """Check several keys together: UserError for values that contradict each other."""
    if values["num_train_iter"] % values["epoch"]:
        raise UserError(
            f"{where}: num_train_iter ({values['num_train_iter']}) must be divisible by epoch ({values['epoch']})"
        )
    unlabelled = values["batch_size"] * values["uratio"]
    if unlabelled > LARGEST_BATCH:
        raise UserError(f"{where}: batch_size x uratio is {unlabelled:,} images a step; at most {LARGEST_BATCH:,}")
    name = values["save_name"]
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise UserError(f"{where}: save_name is a folder inside save_dir, not {name!r}")
    try:
        PoolConfig.read(Namespace(**values))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    detector = values["rs_detector"]
    kinds = ("csqueue", "pu", "supervised", "oracle", "random", "none")
    if detector not in kinds and not detector.startswith("scores:"):
        takes = f"{', '.join(kinds)} or scores:FILE.csv"
        raise UserError(f"{where}: rs_detector takes {takes}, not {detector!r}")


def import_plugin(module: str) -> None:
    """Import a user's module, also from the working directory; UserError if that fails."""
    import importlib
    import sys

    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"plugin {module!r} cannot be imported: {reason}") from None


def identity(config: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that determines the result."""
    values = vars(config) if isinstance(config, Namespace) else config
    return {key: values[key] for key in sorted(values) if key not in NOT_IDENTITY}


def config_hash(config: Namespace | Mapping[str, Any]) -> str:
    """SHA-256 of the identity of a resolved configuration."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def default_save_name(config: Namespace) -> str:
    """A run folder's name, made of the keys in which runs usually differ."""
    uses_other_base = is_rsmatch_variant(config.algorithm) and config.rs_base != "fixmatch"
    base = f"_{config.rs_base}" if uses_other_base else ""
    imbalanced = f"_{config.imb_algorithm}" if config.imb_algorithm else ""
    return f"{config.algorithm}{base}{imbalanced}_{config.dataset}_{config.num_labels}_{config.seed}"
