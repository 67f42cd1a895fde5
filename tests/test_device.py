"""The choice of the device, the message if it is missing, and bfloat16 support."""

from __future__ import annotations

import pytest
import torch

from usb_rsmatch.device import choose_device, has_bfloat16
from usb_rsmatch.errors import UserError


def test_auto_chooses_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device(None) == choose_device("auto") == name
        assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(("name", "message"), [("cuda", "finds no CUDA device"), ("tpu", "takes auto, cpu or cuda")])
def test_a_missing_or_unknown_device_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        choose_device(name)


def test_bfloat16_depends_on_the_cpu_s_instructions_or_the_gpu_s_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, has in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert has_bfloat16(torch.device("cuda")) is has
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    assert not has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_bfloat16(torch.device("cpu"))
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe)  # as in older torch
    assert not has_bfloat16(torch.device("cpu"))
