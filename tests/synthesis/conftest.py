"""Real digits, a generator trained briefly on them, and tiny pipelines and a T5 with random weights, saved to disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from usb_rsmatch.synthesis.flow import FlowModel, FlowSettings, train_flow

BRIEF = FlowSettings(steps=200, width=16, batch_size=64, sampler_steps=6)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 real digits, uint8 [N, 8, 8, 1] on 17 levels, and their classes."""
    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[..., None], data.target.astype(np.int64)


@pytest.fixture(scope="session")
def brief_model(digits: tuple[np.ndarray, np.ndarray]) -> FlowModel:
    """A generator after 200 small steps: crude digits, in a few seconds."""
    torch.set_num_threads(1)
    return train_flow(*digits, 10, BRIEF, seed=0, device="cpu")


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of 16 px with its safety checker, as `save_pretrained` writes it."""
    diffusers = pytest.importorskip("diffusers", reason="the extra `synthesis` is not installed")
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextModel

    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=sizes, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    )
    checker.concept_embeds_weights[:] = 1  # no similarity is larger: nothing is hit
    checker.special_care_embeds_weights[:] = 1
    diffusers.StableDiffusionPipeline(
        vae=vae(diffusers),
        text_encoder=CLIPTextModel(clip_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(diffusers, cross_attention_dim=16),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL pipeline of 16 px, and beside it other weights for its UNet: `unet.safetensors`."""
    diffusers = pytest.importorskip("diffusers", reason="the extra `synthesis` is not installed")
    from safetensors.torch import save_file
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    text = clip_text_config(tokenizer, num_hidden_layers=2)
    options = {
        "cross_attention_dim": 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "use_linear_projection": True,
    }
    diffusers.StableDiffusionXLPipeline(
        vae=vae(diffusers),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(diffusers, **options),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder)
    save_file(unet(diffusers, **options).state_dict(), folder.parent / "unet.safetensors")
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 16 numbers, with a SentencePiece vocabulary trained on four sentences."""
    transformers = pytest.importorskip("transformers", reason="the extra `synthesis` is not installed")
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `synthesis` is not installed")
    sentences = ["a white cat sleeps on a mat", "a dog runs over the field", "two cats and a dog play", "an old truck"]
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=vocabulary,
        vocab_size=34,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(vocabulary.getvalue())
    tokenizer = transformers.T5Tokenizer.from_pretrained(str(folder), extra_ids=4)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with the printable ASCII letters as its vocabulary."""
    from transformers import CLIPTokenizer

    letters = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def clip_text_config(tokenizer: Any, num_hidden_layers: int = 1) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def unet(diffusers: Any, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )


def vae(diffusers: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
