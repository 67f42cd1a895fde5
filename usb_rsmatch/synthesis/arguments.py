"""The flags of `usb-rsmatch synthesize`, without heavy imports, so that `--help` stays fast."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  usb-rsmatch synthesize --engine flow --dataset fashionmnist --size 32 --count 10000 --out synthetic/flow
  usb-rsmatch synthesize --engine diffusers --preset sd14 --dataset cifar10 --count 10000 --out synthetic/sd14
  usb-rsmatch synthesize --engine diffusers --model ./my_pipeline --classes cat dog --count 20 --out synthetic/mine

The same command resumes where it stopped. GLIDE is in no package index: add images that its own code generated to a
pool as a folder, `synthetic: - {source: "folder:DIR", generator: glide}`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the command to its parser."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--engine",
        required=True,
        choices=["flow", "diffusers"],
        help="train a small flow model, or use a diffusion pipeline",
    )
    add("--out", metavar="DIR", help="output folder: a new one, or that of the same run, which resumes")
    add("--count", type=int, metavar="N", help="total number of images, divided equally among the classes")
    add("--per-class", type=int, metavar="N", help="images of each class, instead of --count")
    add(
        "--dataset",
        metavar="NAME",
        help="real data set that defines classes, size and colour; the flow engine trains on it",
    )
    add("--data-dir", default="./data", metavar="DIR", help="folder of the real data set; default: ./data")
    add("--labels", metavar="FILE", help="for --dataset folder: a table of its files, classes and splits")
    add(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="only these classes, or a file with one per line; also without --dataset",
    )
    add(
        "--size",
        metavar="PX",
        help="side in pixels, resized like a pool's images; default: the data set's; full: not resized",
    )
    add("--seed", type=int, default=0, help="seed of the run; every image has a seed of its own, by class and number")
    add("--batch-size", type=int, metavar="N", help="batch size; part of the run's identity; default: flow 128, else 8")
    add("--steps", type=int, metavar="N", help="sampling steps from noise to image")
    add("--guidance", type=float, metavar="W", help="classifier-free guidance")
    add("--name", metavar="GENERATOR", help="the generator's name in pools; default: from the preset or model")
    add(
        "--format",
        choices=["png", "npz"],
        default="png",
        help="an imagefolder, or npz arrays with 1,000 images per file",
    )
    add("--shard", metavar="I/N", help="only every N-th batch, beginning with the I-th (1-based)")
    add("--report", action="store_true", help="measure image quality by a classifier trained on the real images")
    add("--device", default="auto", metavar="auto|cpu|cuda")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="data type for computation")

    add = parser.add_argument_group("engine flow: a small class-conditional generator, 8 to 64 px").add_argument
    add(
        "--part",
        metavar="PART",
        help="real images to train on: train (default), train[:50%%], train[100:600] or labeled:N",
    )
    add(
        "--cache",
        metavar="DIR",
        help="cache folder of the trained generator; default: USB_RSMATCH_CACHE or the user's cache",
    )
    add("--train-steps", type=int, metavar="N", help="training steps")
    add("--train-batch-size", type=int, metavar="N", help="images per training step")
    add("--width", type=int, metavar="N", help="channels on the finest grid, or of the transformer")
    add(
        "--autoencoder",
        metavar="NAME|DIR",
        help="train in the latents of a tiny autoencoder, for photographs of up to 256 px: on the hub, or a folder",
    )
    add("--depth", type=int, metavar="N", help="with --autoencoder: blocks of the transformer")
    add("--lr", type=float, help="peak learning rate")
    add("--ema", type=float, help="decay of the averaged weights per step")
    add("--p-uncond", type=float, metavar="P", help="share of training images whose class is hidden, for guidance")
    add(
        "--difficulty",
        metavar="X",
        help="how hard the images are for a classifier: 0.2, a range 0.3:0.7, or match, the real distribution",
    )
    add(
        "--difficulty-scores",
        metavar="FILE.csv",
        help="difficulty scores of the training images; default with --difficulty: from out-of-fold classifiers",
    )
    add("--write-difficulty", metavar="FILE.csv", help="only compute the scores and write them to a new file")
    add("--p-no-difficulty", type=float, metavar="P", help="share of images with a class whose score is hidden")
    add("--solver", choices=["heun", "euler"], help="two network evaluations per step, or one")
    add(
        "--weights", choices=["ema", "early"], help="the final averaged weights, or those after a fifth of the training"
    )

    add = parser.add_argument_group("engine diffusers: a text-to-image pipeline (extra: synthesis)").add_argument
    add(
        "--preset", choices=["sd14", "sdxl-lightning"], help="model, UNet, scheduler, steps and guidance of its authors"
    )
    add("--model", metavar="NAME|DIR", help="a pipeline on the Hugging Face hub, or a local folder")
    add("--revision", metavar="REV", help="revision of the model on the hub: a branch, tag or commit")
    add("--unet", metavar="FILE", help="weights for the pipeline's UNet, .safetensors; default: the preset's")
    add("--resolution", type=int, metavar="PX", help="size at which the pipeline works; default: its own")
    add("--negative-prompt", metavar="TEXT")
    add(
        "--prompt",
        action="append",
        metavar="TEMPLATE",
        help="prompt template with {name} or {definition} of the class; may be repeated",
    )
    add("--prompts", metavar="FILE", help="one template per line, or .json: a list of prompts for each class")
    add("--names", metavar="FILE.json", help="names of classes in prompts, as a JSON object; WordNet ids need none")
    add("--t5", metavar="NAME|DIR", help="a T5 that turns a class name into sentences, on the hub or local")
    add("--t5-input", default="{name}", metavar="TEMPLATE", help="the T5's input; default: {name}")
    add("--sentences", type=int, default=20, metavar="N", help="sentences of the T5 per class; default: 20")
