"""The network of a configuration: its builder, pretrained weights, frozen parts, and a check on one image."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torchvision
from semilearn import nets
from semilearn.core.utils.build import get_net_builder
from torch import nn

from usb_rsmatch.algorithms import timm_backbone
from usb_rsmatch.algorithms.fine_tuning import checkpoint_gradients, freeze
from usb_rsmatch.algorithms.pretrained_weights import load_weights, read_weights, without_prefix
from usb_rsmatch.algorithms.timm_backbone import NetworkInput, TimmBackbone
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import nearest

# Prefixes of weights that USB's `load_checkpoint` never takes from a file (nets/utils.py:32).
USB_HEADS = ("fc", "classifier", "mlp", "head")


def is_timm(args: Any) -> bool:
    """Whether a configuration names a network of timm."""
    return str(args.net).startswith(timm_backbone.PREFIX) and not getattr(args, "net_from_name", False)


class NetworkBuilder:
    """Builds the network of a configuration, with USB's signature; `notes` tell what a user should know of it.

    The pool in `args.pool` gives image size and normalisation when a network is built. Without `load_weights` it is
    never pretrained: the weights of a checkpoint follow.
    """

    def __init__(self, args: Any, build: Any, load_weights: bool = True) -> None:
        self.args, self.build, self.load_weights = args, build, load_weights
        self.notes: list[str] = []
        self.options = dict(getattr(args, "net_kwargs", None) or {})

    def __call__(self, num_classes: int, pretrained: bool = False, pretrained_path: str | None = None) -> nn.Module:
        pretrained = pretrained and self.load_weights
        if is_timm(self.args):
            network: nn.Module = self._timm(num_classes, pretrained, pretrained_path or "")
        elif self._is_plugins() or (pretrained and getattr(self.args, "pool", None) is None):
            given = {"pretrained": True, "pretrained_path": pretrained_path} if pretrained else {}
            network = self.build(num_classes=num_classes, **given, **self.options)
        else:
            network = self.build(num_classes=num_classes, **self.options)
            if pretrained:
                self.notes += load_usb_weights(network, pretrained_path or "")
        self._fine_tune(network)
        return network

    def _is_plugins(self) -> bool:
        """Whether a plugin (or torchvision) defines the network, which then loads its own weights."""
        return not str(getattr(self.build, "__module__", "")).startswith(("semilearn.", "usb_rsmatch."))

    def _timm(self, num_classes: int, pretrained: bool, path: str) -> TimmBackbone:
        net = self.args.net
        backbone = timm_backbone.build_timm(net, num_classes, self._input(), self.options, hub=pretrained and not path)
        if pretrained:
            self.notes += timm_backbone.load_timm(backbone, path) if path else [f"{net}: weights of timm's hub"]
            self.notes.append(self._note_on_input(backbone.input))
        return backbone

    def _input(self) -> NetworkInput:
        """The input of timm's network: as its pretrained configuration says, or the pool's images as they are."""
        args, config = self.args, timm_backbone.timm_config(self.args.net)
        pool = getattr(args, "pool", None)
        own = args.img_size if pool is None else pool.unlabeled.images.shape[1]
        size = getattr(args, "net_size", None)
        if not args.use_pretrain:
            return NetworkInput(size or own, config.interpolation)
        size = size or config.input_size[-1]
        if pool is None:
            return NetworkInput(size, config.interpolation)
        seen, wanted = (pool.spec.mean, pool.spec.std), (config.mean, config.std)
        return NetworkInput.renormalised(size, config.interpolation, seen, wanted)

    def _note_on_input(self, taken: NetworkInput) -> str:
        config, pool = timm_backbone.timm_config(self.args.net), getattr(self.args, "pool", None)
        size = self.args.img_size if pool is None else pool.unlabeled.images.shape[1]
        resized = (
            f"{size} px" if size == taken.size else f"resized from {size} to {taken.size} px ({taken.interpolation})"
        )
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (config.mean, config.std))
        return f"{self.args.net}: images are {resized}, normalised by mean {mean} and deviation {std} as it was trained"

    def _fine_tune(self, network: nn.Module) -> None:
        what = getattr(self.args, "freeze", "none")
        if what != "none":
            freeze(network, head_of(network, self.args.net), what)
        if getattr(self.args, "grad_checkpointing", False):
            checkpoint_gradients(network, self.args.net)


def head_of(network: nn.Module, net: str) -> nn.Module:
    """The classifier of a network of timm or USB; UserError for another network."""
    for name in ("classifier", "head", "fc"):
        if isinstance(head := getattr(network, name, None), nn.Module):
            return head
    raise UserError(f"freeze: {net} has no classifier by the name classifier, head or fc")


def load_usb_weights(network: nn.Module, path: str) -> list[str]:
    """Load a checkpoint into a network of USB as its `load_checkpoint` does, but the head, which is always new.

    USB's function ignores tensors that are missing or have other names; here they are named by a UserError.
    """
    from semilearn.nets.utils import resize_pos_embed_vit

    state = without_prefix(read_weights(path), network.state_dict())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(USB_HEADS)}
    own: Any = getattr(network, "pos_embed", None)
    if own is not None and "pos_embed" in state and state["pos_embed"].shape != own.shape:
        state["pos_embed"] = resize_pos_embed_vit(state["pos_embed"], own)
    heads = {name.partition(".")[0] for name in network.state_dict() if name.startswith(USB_HEADS)}
    return load_weights(network, state, path, heads, new_head=True)


def find_net(args: Namespace, load_weights: bool = True) -> NetworkBuilder:
    """The builder of `args.net`; UserError for an unknown name, for missing weights, and for keys that do not fit."""
    builder: Any = None
    if is_timm(args):
        timm_backbone.timm_config(args.net)
    else:
        try:
            builder = get_net_builder(args.net, args.net_from_name)
        except AttributeError:
            builder = None
        if not callable(builder):  # None for a name that torchvision does not know
            kinds = torchvision.models if args.net_from_name else nets
            names = [name for name, kind in vars(kinds).items() if callable(kind) and name.islower()]
            raise UserError(f"unknown net {args.net!r}{nearest(args.net, names)}")
        if getattr(args, "net_size", None) is not None:
            raise UserError(f"net_size is for networks of timm, not {args.net}: set img_size")
    path = args.pretrain_path
    from_file = load_weights and args.use_pretrain and getattr(args, "pool", None) is not None
    if from_file and not (is_timm(args) and not path) and "://" not in path and not Path(path).is_file():
        raise UserError(f"use_pretrain: pretrain_path {path!r} is neither a file nor an address of weights")
    return NetworkBuilder(args, builder, load_weights)


@torch.no_grad()
def check_network(algorithm: Any) -> None:
    """Pass one image through the network before anything is written; any error means that the two do not fit.

    Raises ValueError if the logits do not have the shape [1, num_classes].
    """
    args = algorithm.args
    if getattr(args, "pool", None) is None:  # USB's own data sets are not only images
        return
    model = algorithm.ema_model
    was_training = model.training
    output = model.eval()(torch.zeros(1, 3, args.img_size, args.img_size, device=args.device))
    model.train(was_training)
    shape = tuple(output["logits"].shape)
    if shape != (1, args.num_classes):
        raise ValueError(f"its logits of one image have the shape {shape}, not {(1, args.num_classes)}")


def required_size(net_builder: Any) -> int | None:
    """The side in pixels of the only images that a network of USB takes, as its ViTs do; None for any size."""
    try:
        network = net_builder(num_classes=2, pretrained=False, pretrained_path="")
    except Exception:  # a network that cannot be built has another problem
        return None
    sizes = [getattr(module, "img_size", None) for name, module in network.named_modules() if "patch_embed" in name]
    return next((size[0] for size in sizes if isinstance(size, tuple)), None)


def network_notes(algorithm: Any) -> list[str]:
    """What a new run says of its network: pretrained weights, input, detector, normalisation."""
    notes = [f"note: {line}" for line in getattr(algorithm.net_builder, "notes", [])]
    if hasattr(algorithm, "detector_cost") and (cost := algorithm.detector_cost()):
        notes.append(f"detector: {cost:.2%} of the network's multiply-adds")
    if hasattr(algorithm, "normalisation_note"):
        notes += [line for line in (algorithm.detector_note(), algorithm.normalisation_note()) if line]
    return notes
