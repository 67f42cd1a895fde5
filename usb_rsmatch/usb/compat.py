"""Fixes for semilearn's defects that no subclass can fix: one small, idempotent, feature-detected function each.

There are two variants of "0.3.2": the wheel on the package index, and the repository's HEAD (commit 1ef4cbe).
Line numbers refer to HEAD.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from usb_rsmatch.usb.lazy_import import defer_trackers, replace_hooks_of_missing_trackers, restore_trackers


def fix_timm_layers() -> bool:
    """`semilearn/nets/vit/vit.py:13` imports `timm.models.layers.helpers`, which current timm does not have.

    Applies if that module is missing: sets an alias with the one name that is used, before semilearn is imported.
    """
    name = "timm.models.layers.helpers"
    if name in sys.modules or importlib.util.find_spec("timm") is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm announces that timm.models.layers moved
        with contextlib.suppress(ImportError):
            if importlib.util.find_spec(name) is not None:
                return False
        layers: Any = importlib.import_module("timm.layers")
    alias = types.ModuleType(name)
    alias.to_2tuple = layers.to_2tuple  # type: ignore[attr-defined]
    sys.modules[name] = alias
    return True


def fix_yaml() -> bool:
    """`core/utils/misc.py:32` calls `ruamel.yaml.load(...)`, removed in ruamel.yaml 0.18: every `--c` run fails.

    Applies if calling it raises; PyYAML's safe loader replaces it in every module that imported the function.
    """
    from semilearn.core import utils
    from semilearn.core.utils import misc

    if getattr(misc.over_write_args_from_file, "fixed", False):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            misc.yaml.load("a: 1", Loader=misc.yaml.Loader)
        return False
    except Exception:  # which exception ruamel raises depends on its version
        pass

    def over_write_args_from_file(args: Any, yml: str) -> None:
        import yaml

        if yml == "":
            return
        with open(yml, encoding="utf-8") as file:
            for key, value in (yaml.safe_load(file) or {}).items():
                setattr(args, key, value)

    over_write_args_from_file.fixed = True  # type: ignore[attr-defined]
    misc.over_write_args_from_file = utils.over_write_args_from_file = over_write_args_from_file
    return True


def fix_get_config() -> bool:
    """`lighting/config.py:72` names the key `use_amp`, but `core/algorithmbase.py:57` reads `amp`.

    Adds what the parser lacks: `amp`, and `distributed`, which only train.py sets.
    """
    import semilearn
    from semilearn.lighting import config as lighting_config

    original = semilearn.get_config
    if getattr(original, "fixed", False):
        return False

    def get_config(config: dict[str, Any]) -> Any:
        args = original(config)
        if not hasattr(args, "amp"):
            args.amp = getattr(args, "use_amp", False)
        if not hasattr(args, "distributed"):  # only set by train.py, read by every algorithm
            args.distributed = False
        return args

    get_config.fixed = True  # type: ignore[attr-defined]
    semilearn.get_config = semilearn.lighting.get_config = lighting_config.get_config = get_config
    return True


def fix_gather() -> bool:
    """`softmatch/utils.py:34` calls a method `concat_all_gather` that does not exist: it fails with several processes.

    Applies if the masking hook lacks it; the intended function is imported in the same file.
    """
    from semilearn.algorithms.softmatch import utils

    hook = utils.SoftMatchWeightingHook
    if hasattr(hook, "concat_all_gather"):
        return False
    hook.concat_all_gather = staticmethod(utils.concat_all_gather)
    return True


def _rewrite(owner: Any, method: str, replacements: dict[str, str]) -> bool:
    """Replace lines of one of `owner`'s methods in place; returns False, without a change, if a line is not found."""
    function = getattr(owner, method)
    source = textwrap.dedent(inspect.getsource(function))
    if not all(wrong in source for wrong in replacements):
        return False
    for wrong, right in replacements.items():
        source = source.replace(wrong, right)
    namespace: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, namespace)
    setattr(owner, method, namespace[method])
    return True


def _algorithm(name: str) -> Any:
    """USB's class of that name; None if this variant does not have it, or it is fixed already."""
    from semilearn.core.utils import ALGORITHMS

    if name not in ALGORITHMS or "fixed" in vars(ALGORITHMS[name]):
        return None
    return ALGORITHMS[name]


def fix_meanteacher() -> bool:
    """`meanteacher/meanteacher.py:57-58` compares the teacher's output with itself: no consistency loss at all.

    Applies if the step uses the weak view's output for the student (HEAD); the wheel is correct.
    """
    algorithm = _algorithm("meanteacher")
    wrong = {
        "logits_x_ulb_s = outs_x_ulb_w['logits']": "logits_x_ulb_s = outs_x_ulb_s['logits']",
        "feats_x_ulb_s = outs_x_ulb_w['feat']": "feats_x_ulb_s = outs_x_ulb_s['feat']",
    }
    if algorithm is None or not _rewrite(algorithm, "train_step", wrong):
        return False
    algorithm.fixed = True
    return True


def fix_sequencematch() -> bool:
    """`sequencematch/sequencematch.py:124` returns features under an undefined name: NameError at the first step.

    Applies if the name is used and not set (HEAD); the algorithm then returns no features.
    """
    algorithm = _algorithm("sequencematch")
    wrong = {"self.process_out_dict(loss=total_loss, feat=feat_dict)": "self.process_out_dict(loss=total_loss)"}
    if algorithm is None or "feat_dict =" in inspect.getsource(algorithm.train_step):
        return False
    if not _rewrite(algorithm, "train_step", wrong):
        return False
    algorithm.fixed = True
    return True


def fix_crmatch_view() -> bool:
    """`crmatch/crmatch.py:94` calls `view` on its feature maps, which fails in the channels-last memory format
    (`rs_fast`).

    Applies if it does; `reshape` copies where needed.
    """
    from semilearn.algorithms.crmatch import crmatch

    algorithm = _algorithm("crmatch")
    wrong = {"feat_maps.view(": "feat_maps.reshape("}
    if algorithm is None or not _rewrite(crmatch.CRMatch_Net, "forward", wrong):
        return False
    algorithm.fixed = True
    return True


def fix_crmatch_map() -> bool:
    """`crmatch/crmatch.py:82-88` assumes 8 x 8 feature maps: only images of 32 px fit (or STL-10's 96 px).

    Applies to networks and images with feature maps of another size: a layer of the right size replaces the original.
    """
    from semilearn.algorithms.crmatch import crmatch

    net = crmatch.CRMatch_Net
    original = net.__init__
    if getattr(original, "fixed", False):
        return False

    def __init__(self: Any, base: Any, args: Any, use_rot: bool = True) -> None:
        original(self, base, args, use_rot)
        if not ("wrn" in args.net or "resnet" in args.net):
            return
        training = base.training
        with torch.no_grad():
            size = base.eval().extract(torch.zeros(1, 3, args.img_size, args.img_size)).numel()
        base.train(training)
        if size != self.ds_classifier.in_features:
            self.ds_classifier = torch.nn.Linear(size, self.num_features, bias=True)

    __init__.fixed = True  # type: ignore[attr-defined]
    net.__init__ = __init__
    return True


def fix_crmatch_network() -> bool:
    """`crmatch/crmatch.py:75-100` knows networks by their names, which those of timm do not follow.

    Applies to networks of timm: their pooled features take the place of the feature map, as for USB's ViTs.
    """
    from semilearn.algorithms.crmatch import crmatch

    from usb_rsmatch.algorithms.timm_backbone import TimmBackbone

    net = crmatch.CRMatch_Net
    original_init, original_forward = net.__init__, net.forward
    if getattr(original_forward, "fixed", False):
        return False

    def __init__(self: Any, base: Any, args: Any, use_rot: bool = True) -> None:
        if isinstance(base, TimmBackbone):
            args = types.SimpleNamespace(net="vit", dataset=args.dataset, img_size=args.img_size)
        original_init(self, base, args, use_rot)

    def forward(self: Any, x: Any) -> Any:
        if not isinstance(self.backbone, TimmBackbone):
            return original_forward(self, x)
        feat = self.backbone(x, only_feat=True)
        out = {"logits": self.backbone(feat, only_fc=True), "logits_ds": self.ds_classifier(feat), "feat": feat}
        return {**out, "logits_rot": self.rot_classifier(feat) if self.use_rot else None}

    __init__.fixed = forward.fixed = True  # type: ignore[attr-defined]
    net.__init__, net.forward = __init__, forward
    return True


def fix_no_weight_decay() -> bool:
    """The wrappers of comatch, crmatch, remixmatch and simmatch do not forward `no_weight_decay`.

    Position embeddings and class tokens then decay under these algorithms, but not under the others.
    """
    from semilearn.algorithms.comatch.comatch import CoMatch_Net
    from semilearn.algorithms.crmatch.crmatch import CRMatch_Net
    from semilearn.algorithms.remixmatch.remixmatch import ReMixMatch_Net
    from semilearn.algorithms.simmatch.simmatch import SimMatch_Net

    def no_weight_decay(self: Any) -> list[str]:
        return [f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", list)()]

    lacking = [n for n in (CoMatch_Net, CRMatch_Net, ReMixMatch_Net, SimMatch_Net) if not hasattr(n, "no_weight_decay")]
    for net in lacking:
        net.no_weight_decay = no_weight_decay
    return bool(lacking)


class _Event:
    """A stand-in for `torch.cuda.Event` without CUDA; it measures no time."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def elapsed_time(self, _: Any) -> float:
        return 0.0


@contextlib.contextmanager
def cuda_calls_stay_on_cpu() -> Iterator[None]:
    """About sixty places (`.cuda(self.gpu)`, `torch.cuda.Event`, `torch.cuda.synchronize`) assume a GPU.

    Applies without a GPU: inside this context those calls leave tensors and modules on the CPU. It is a context, not a
    patch, so that code outside of a run still gets torch's own error.
    """
    if torch.cuda.is_available():
        yield
        return

    def same(self: Any, *_: Any, **__: Any) -> Any:
        return self

    def nothing(*_: Any, **__: Any) -> None:
        return None

    replaced: list[tuple[Any, str, Any]] = []
    for owner, name, stand_in in (
        (torch.Tensor, "cuda", same),
        (torch.nn.Module, "cuda", same),
        (torch.cuda, "Event", _Event),
        (torch.cuda, "synchronize", nothing),
        (torch.cuda, "set_device", nothing),
    ):
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, stand_in)
    try:
        yield
    finally:
        for owner, name, original in replaced:
            setattr(owner, name, original)


# The fixes before and after semilearn's import; `usb_rsmatch.usb.doctor` lists them from here.
BEFORE_IMPORT: tuple[Callable[[], bool], ...] = (
    defer_trackers,
    replace_hooks_of_missing_trackers,
    fix_timm_layers,
)
AFTER_IMPORT: tuple[Callable[[], bool], ...] = (
    restore_trackers,
    fix_yaml,
    fix_get_config,
    fix_gather,
    fix_meanteacher,
    fix_sequencematch,
    fix_crmatch_view,
    fix_crmatch_map,
    fix_crmatch_network,
    fix_no_weight_decay,
)


def apply_fixes() -> list[str]:
    """Apply the fixes that are needed; returns the names of those that changed something (none the second time)."""
    changed = [function.__name__ for function in BEFORE_IMPORT if function()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings about names that semilearn still uses
        importlib.import_module("semilearn")
    return changed + [function.__name__ for function in AFTER_IMPORT if function()]
