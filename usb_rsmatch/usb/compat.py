"""Defects of semilearn that no class laid over it can mend: one small, idempotent, feature-detected function each.

Both variants of "0.3.2" are meant: the wheel on the package index, and the repository's head (commit 1ef4cbe).
Line numbers are those of the head.
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

from usb_rsmatch.usb.lazy_import import let_go_of_trackers, put_off_trackers


def mend_timm_layers() -> bool:
    """`semilearn/nets/vit/vit.py:13` imports `timm.models.layers.helpers`, which current timm has not.

    Applies where that module is missing: an alias with the one name that is used, set before semilearn is imported.
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


def mend_yaml() -> bool:
    """`core/utils/misc.py:32` calls `ruamel.yaml.load(...)`, removed in ruamel.yaml 0.18: every `--c` run fails.

    Applies where calling it raises; PyYAML's safe loader takes its place, in every module that imported the function.
    """
    from semilearn.core import utils
    from semilearn.core.utils import misc

    if getattr(misc.over_write_args_from_file, "mended", False):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            misc.yaml.load("a: 1", Loader=misc.yaml.Loader)
        return False
    except Exception:  # ruamel raises SystemExit's cousin or AttributeError, depending on its version
        pass

    def over_write_args_from_file(args: Any, yml: str) -> None:
        import yaml

        if yml == "":
            return
        with open(yml, encoding="utf-8") as file:
            for key, value in (yaml.safe_load(file) or {}).items():
                setattr(args, key, value)

    over_write_args_from_file.mended = True  # type: ignore[attr-defined]
    misc.over_write_args_from_file = utils.over_write_args_from_file = over_write_args_from_file
    return True


def mend_get_config() -> bool:
    """`lighting/config.py:72` names the key `use_amp`, but `core/algorithmbase.py:57` reads `amp`.

    Applies to what the parser lacks: `amp`, and `distributed`, which only train.py sets.
    """
    import semilearn
    from semilearn.lighting import config as lighting_config

    original = semilearn.get_config
    if getattr(original, "mended", False):
        return False

    def get_config(config: dict[str, Any]) -> Any:
        args = original(config)
        if not hasattr(args, "amp"):
            args.amp = getattr(args, "use_amp", False)
        if not hasattr(args, "distributed"):  # set by train.py alone, read by every algorithm
            args.distributed = False
        return args

    get_config.mended = True  # type: ignore[attr-defined]
    semilearn.get_config = semilearn.lighting.get_config = lighting_config.get_config = get_config
    return True


def mend_gather() -> bool:
    """`softmatch/utils.py:34` calls a method `concat_all_gather` that does not exist: it fails on several processes.

    Applies where the masking hook lacks it; the function that was meant is imported in the same file.
    """
    from semilearn.algorithms.softmatch import utils

    hook = utils.SoftMatchWeightingHook
    if hasattr(hook, "concat_all_gather"):
        return False
    hook.concat_all_gather = staticmethod(utils.concat_all_gather)
    return True


def _rewrite(owner: Any, method: str, replacements: dict[str, str]) -> bool:
    """Replace lines of one of `owner`'s methods in place; False, and nothing done, where any of them is not there."""
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
    """USB's class of that name; None where this variant has none, or it is mended already."""
    from semilearn.core.utils import ALGORITHMS

    if name not in ALGORITHMS or "mended" in vars(ALGORITHMS[name]):
        return None
    return ALGORITHMS[name]


def mend_meanteacher() -> bool:
    """`meanteacher/meanteacher.py:57-58` compares the teacher's output with itself: no consistency loss at all.

    Applies where the step reads the weak view's output for the student (the head); the wheel reads the right one.
    """
    algorithm = _algorithm("meanteacher")
    wrong = {
        "logits_x_ulb_s = outs_x_ulb_w['logits']": "logits_x_ulb_s = outs_x_ulb_s['logits']",
        "feats_x_ulb_s = outs_x_ulb_w['feat']": "feats_x_ulb_s = outs_x_ulb_s['feat']",
    }
    if algorithm is None or not _rewrite(algorithm, "train_step", wrong):
        return False
    algorithm.mended = True
    return True


def mend_sequencematch() -> bool:
    """`sequencematch/sequencematch.py:124` returns features that the step never named: NameError at the first step.

    Applies where the name is used and not set (the head); the algorithm then gives no features.
    """
    algorithm = _algorithm("sequencematch")
    wrong = {"self.process_out_dict(loss=total_loss, feat=feat_dict)": "self.process_out_dict(loss=total_loss)"}
    if algorithm is None or "feat_dict =" in inspect.getsource(algorithm.train_step):
        return False
    if not _rewrite(algorithm, "train_step", wrong):
        return False
    algorithm.mended = True
    return True


def mend_crmatch_view() -> bool:
    """`crmatch/crmatch.py:94` takes a view of its feature maps, which do not lie so in memory where they are
    channels last (`rs_fast`).

    Applies where it does: a copy is made where one is needed.
    """
    from semilearn.algorithms.crmatch import crmatch

    algorithm = _algorithm("crmatch")
    wrong = {"feat_maps.view(": "feat_maps.reshape("}
    if algorithm is None or not _rewrite(crmatch.CRMatch_Net, "forward", wrong):
        return False
    algorithm.mended = True
    return True


def mend_crmatch_map() -> bool:
    """`crmatch/crmatch.py:82-88` takes 8 x 8 feature maps for granted: only 32 px images fit (or 96 of STL-10).

    Applies to networks and images whose maps have another size: a layer of the right size takes the place.
    """
    from semilearn.algorithms.crmatch import crmatch

    net = crmatch.CRMatch_Net
    original = net.__init__
    if getattr(original, "mended", False):
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

    __init__.mended = True  # type: ignore[attr-defined]
    net.__init__ = __init__
    return True


class _Event:
    """What remains of a `torch.cuda.Event` where there is no CUDA: time is not measured with it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def elapsed_time(self, _: Any) -> float:
        return 0.0


@contextlib.contextmanager
def cuda_calls_stay_on_cpu() -> Iterator[None]:
    """About sixty places (`.cuda(self.gpu)`, `torch.cuda.Event`, `torch.cuda.synchronize`) assume a GPU.

    Applies where there is none: inside this context those calls leave tensors and modules where they are. A context
    and not a patch, so that code outside a run still gets torch's own error.
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


# What runs before semilearn is imported, and what after; `usb_rsmatch.usb.doctor` lists them from here.
BEFORE_IMPORT: tuple[Callable[[], bool], ...] = (put_off_trackers, mend_timm_layers)
AFTER_IMPORT: tuple[Callable[[], bool], ...] = (
    let_go_of_trackers,
    mend_yaml,
    mend_get_config,
    mend_gather,
    mend_meanteacher,
    mend_sequencematch,
    mend_crmatch_view,
    mend_crmatch_map,
)


def mend() -> list[str]:
    """Mend what applies here; gives the names of the functions that changed something (none the second time)."""
    changed = [function.__name__ for function in BEFORE_IMPORT if function()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's and torch's notices about names that semilearn still uses
        importlib.import_module("semilearn")
    return changed + [function.__name__ for function in AFTER_IMPORT if function()]
