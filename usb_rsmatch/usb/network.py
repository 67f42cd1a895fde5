"""The network of a configuration, and a check that it accepts the pool's images."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torchvision
from semilearn import get_net_builder, nets

from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import nearest


def find_net(args: Namespace) -> Any:
    """The builder of `args.net`; UserError for an unknown name, and for missing weights."""
    try:
        builder = get_net_builder(args.net, args.net_from_name)
    except AttributeError:
        builder = None
    if not callable(builder):  # None for a name that torchvision does not know
        kinds = torchvision.models if args.net_from_name else nets
        names = [name for name, kind in vars(kinds).items() if callable(kind) and name.islower()]
        raise UserError(f"unknown net {args.net!r}{nearest(args.net, names)}")
    if args.use_pretrain and getattr(args, "pool", None) is not None:
        path = args.pretrain_path
        if "://" not in path and not Path(path).is_file():
            raise UserError(f"use_pretrain: pretrain_path {path!r} is neither a file nor an address of weights")
    return builder


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
