"""`rs_fast`: each switch agrees with the code that it replaces, and resumed runs equal uninterrupted ones exactly."""

from __future__ import annotations

import copy
import inspect
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from semilearn import get_net_builder
from semilearn.algorithms.flexmatch.utils import FlexMatchThresholdingHook
from semilearn.core.utils import EMA, get_optimizer

from usb_rsmatch.device import has_bfloat16
from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.usb import fast, hooks, training
from usb_rsmatch.usb.config import resolve

CPU = torch.device("cpu")


def silent(line: str) -> None:
    pass


def build(tiny: dict[str, Any], **changes: Any) -> Any:
    args, _ = resolve({**tiny, "rs_fast": True, "rs_loader": "batched", **changes})
    return training.build(args)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return get_net_builder("small_wrn_10_1", False)(num_classes=10)


def set_random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


# whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fixmatch", "flexmatch", "rsmatch"])
def test_resumed_run_equals_the_uninterrupted_one(
    algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny |= {"algorithm": algorithm, "rs_fast": True, "rs_loader": "batched"}
    whole = training.train({**tiny, "save_name": "whole"}, note=silent)
    root = Path(tiny["save_dir"])
    for step in (3, 6):  # in the middle of an epoch, and at its end
        config, left = {**tiny, "save_name": f"stopped{step}"}, iter([False] * (step - 1) + [True])
        with monkeypatch.context() as patch:
            patch.setattr(training.StopBetweenSteps, "__call__", lambda self, left=left: next(left))
            with pytest.raises(Interrupted):
                training.train(config, note=silent)
        result = training.train(config, note=silent)
        first, second = (
            torch.load(root / name / "latest_model.pth", weights_only=True) for name in ("whole", config["save_name"])
        )
        for part in ("model", "ema_model"):
            assert first[part].keys() == second[part].keys()
            assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
        assert result["accuracy"] == whole["accuracy"] and result["detection"] == whole["detection"]


def test_the_first_loss_is_close_to_that_of_the_exact_run(tiny: dict[str, Any]) -> None:
    """With the same batch and the same weights, only the arithmetic differs."""
    losses = []
    for rs_fast in (False, True):
        algorithm = build(tiny, rs_fast=rs_fast, algorithm="fixmatch")
        algorithm.model.train()
        labeled, unlabeled = (next(iter(algorithm.loader_dict[name])) for name in ("train_lb", "train_ulb"))
        out_dict, _ = algorithm.train_step(**algorithm.process_batch(**labeled, **unlabeled))
        losses.append(out_dict["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_rs_fast_false_uses_none_of_its_classes(tiny: dict[str, Any]) -> None:
    algorithm = build(tiny, rs_fast=False)
    assert not isinstance(algorithm, fast.FastMixin)
    assert not any(isinstance(hook, fast.ForeachEMAHook) for hook in algorithm._hooks)
    assert not any(isinstance(module, fast.Bfloat16Forward) for module in algorithm.model.modules())


# switches ---------------------------------------------------------------------------------------------------------


def active_switches(algorithm: Any) -> set[str]:
    """The switches of an algorithm, as visible in its network, optimiser and hooks."""
    hooks = {type(hook) for hook in algorithm._hooks}
    weight = next(p for p in algorithm.model.parameters() if p.ndim == 4)
    active = {
        "bf16": isinstance(algorithm.model, fast.Bfloat16Forward),
        "channels_last": weight.is_contiguous(memory_format=torch.channels_last) and weight.shape[1] > 1,
        "fused": bool(algorithm.optimizer.param_groups[0].get("fused")),
        "foreach_ema": fast.ForeachEMAHook in hooks,
        "counts": fast.CountingFlexMatchHook in hooks,
    }
    return {name for name, is_active in active.items() if is_active}


@pytest.mark.parametrize("name", ["bf16", "channels_last", "fused", "foreach_ema", "counts"])
def test_each_switch_alone(name: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: True)
    assert active_switches(build(tiny, algorithm="flexmatch", rs_fast=name)) == {name}


def test_switches_are_given_as_a_list_or_comma_separated(tiny: dict[str, Any]) -> None:
    for given in (["fused", "channels_last"], "fused,channels_last", "channels_last, fused"):
        assert resolve({**tiny, "rs_fast": given})[0].rs_fast == "channels_last,fused"
    assert active_switches(build(tiny, algorithm="flexmatch", rs_fast=["fused", "counts"])) == {"fused", "counts"}
    for wrong in ("turbo", ["fused", "turbo"], [], "", ["fused", {"bf16": True}]):
        with pytest.raises(UserError, match=r"rs_fast takes true, false, bf16, .*, not"):
            resolve({**tiny, "rs_fast": wrong})


def test_channels_last_outputs_are_close_to_the_exact_ones() -> None:
    exact, other = network().train(), network().to(memory_format=torch.channels_last).train()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    first, second = exact(x)["logits"], other(x)["logits"]
    torch.testing.assert_close(second, first, rtol=0, atol=1e-5 * first.detach().abs().max().item())
    first.square().sum().backward()
    second.square().sum().backward()
    compared = 0
    for mine, theirs in zip(other.parameters(), exact.parameters(), strict=True):
        if mine.grad is not None and theirs.grad is not None:  # one BatchNorm of USB's WideResNet is unused
            assert (mine.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()
            compared += 1
    assert compared > 10


def test_bfloat16_network_returns_float32_close_to_the_exact_outputs() -> None:
    exact, model = network().train(), network().train()
    fast.in_bfloat16(model)
    fast.in_bfloat16(model)  # a second call changes nothing
    assert type(model).__mro__.count(fast.Bfloat16Forward) == 1
    assert model.state_dict().keys() == exact.state_dict().keys()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected, output = exact(x), model(x)
    for key in ("logits", "feat"):
        assert output[key].dtype == torch.float32 and not torch.equal(output[key], expected[key])
        assert (output[key] - expected[key]).norm() < 0.02 * expected[key].norm()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    model.load_state_dict(exact.state_dict())
    assert torch.equal(model.eval()(x)["logits"], exact.eval()(x)["logits"])


def test_nested_outputs_are_converted_to_float32() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    output = fast.to_float32({"a": [half, (half, 3)], "b": torch.ones(1, dtype=torch.int64), "c": None})
    assert output["a"][0].dtype == output["a"][1][0].dtype == torch.float32
    assert output["a"][1][1] == 3 and output["b"].dtype == torch.int64 and output["c"] is None


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fused_optimiser_agrees_with_the_unfused_one(name: str) -> None:
    models = [network(), network()]
    optimizers = [get_optimizer(model, name, 0.03, 0.9, 5e-4) for model in models]
    assert fast.fuse(optimizers[1], CPU)
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_random_gradients(model, step)
            optimizer.step()
    for plain, fused in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)


def test_foreach_ema_agrees_with_usbs() -> None:
    model = network().train()
    theirs, ours = EMA(model, 0.99), fast.ForeachEMA(model, 0.99)
    theirs.register()
    ours.register()
    ema_model, reference = copy.deepcopy(model), copy.deepcopy(model)
    ours.tie(ema_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        set_random_gradients(model, step)
        optimizer.step()
        model(torch.randn(4, 3, 8, 8))  # updates the running statistics
        theirs.update()
        ours.update()
    reference.load_state_dict(model.state_dict())
    reference.load_state_dict(theirs.shadow, strict=False)
    for (name, expected), value in zip(reference.state_dict().items(), ema_model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, msg=name)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    ours.apply_shadow()
    assert torch.equal(model.conv1.weight, ema_model.conv1.weight)
    ours.restore()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_a_replaced_ema_model_is_tied_again(tiny: dict[str, Any]) -> None:
    algorithm = build(tiny)
    hook = algorithm.hooks_dict["EMAHook"]
    hook.before_run(algorithm)
    algorithm.ema_model = copy.deepcopy(algorithm.model)
    with torch.no_grad():
        algorithm.model.conv1.weight += 1.0
    hook.after_train_step(algorithm)
    assert torch.equal(algorithm.ema_model.conv1.weight, algorithm.ema.shadow["conv1.weight"])
    assert not torch.equal(algorithm.ema_model.conv1.weight, algorithm.model.conv1.weight)


@pytest.mark.parametrize("thresh_warmup", [True, False])
@pytest.mark.parametrize("selected", ["none", "few", "most", "all of one class"])
def test_flexmatch_counts_equal_usbs(thresh_warmup: bool, selected: str) -> None:
    theirs = FlexMatchThresholdingHook(ulb_dest_len=997, num_classes=10, thresh_warmup=thresh_warmup)
    labels, generator = theirs.selected_label, torch.Generator().manual_seed(0)
    count = {"none": 0, "few": 40, "most": 900, "all of one class": 997}[selected]
    labels[:count] = torch.randint(0, 10, (count,), generator=generator)
    if selected == "all of one class":
        labels.fill_(3)
    theirs.classwise_acc = torch.rand(10, generator=generator)
    ours = copy.deepcopy(theirs)
    ours.__class__ = fast.CountingFlexMatchHook
    theirs.update()
    ours.update()
    assert torch.equal(theirs.classwise_acc, ours.classwise_acc)


def test_flexmatch_masks_equal_usbs() -> None:
    """Over several batches, some with an image twice, confident or not."""
    theirs = FlexMatchThresholdingHook(ulb_dest_len=40, num_classes=5)
    ours, from_logits = copy.deepcopy(theirs), copy.deepcopy(theirs)
    ours.__class__ = from_logits.__class__ = fast.CountingFlexMatchHook
    args, generator, kept = Namespace(p_cutoff=0.7), torch.Generator().manual_seed(0), 0
    for _ in range(8):
        logits, index = 4 * torch.randn(32, 5, generator=generator), torch.randint(40, (32,), generator=generator)
        expected = theirs.masking(args, logits.softmax(1), index, softmax_x_ulb=False)
        assert torch.equal(ours.masking(args, logits.softmax(1), index, softmax_x_ulb=False), expected)
        assert torch.equal(from_logits.masking(args, logits, index), expected)
        assert torch.equal(theirs.selected_label, ours.selected_label)
        assert torch.equal(theirs.classwise_acc, ours.classwise_acc)
        kept += int(expected.sum())
    assert 32 < kept < 8 * 32


def test_item_returns_tensors_inside_the_step_whose_signature_stays() -> None:
    def step(x_lb: torch.Tensor, y_lb: torch.Tensor) -> dict[str, Any]:
        return {"loss": x_lb.mean(), "logged": x_lb.mean().item(), "shown": f"{y_lb.sum():.1f}"}

    lazy, x = fast.with_lazy_items(step), torch.ones(3, requires_grad=True)
    output = lazy(x, y_lb=torch.ones(2))
    assert inspect.signature(lazy) == inspect.signature(step)
    assert isinstance(output["logged"], torch.Tensor) and not output["logged"].requires_grad
    assert output["logged"].item() == 1.0 and output["shown"] == "2.0"
    assert isinstance(x.mean().item(), float)


@pytest.mark.parametrize("algorithm", ["fixmatch", "flexmatch", "freematch", "softmatch", "rsmatch"])
def test_lazily_logged_values_equal_the_exact_ones(
    algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code path of a GPU, on a CPU: the metrics are the same (bit for bit, except for SoftMatch)."""
    lines = []
    for lazy in (False, True):
        switches = fast.Switches(channels_last=True, fused=True, foreach_ema=True, counts=True, lazy_logs=lazy)
        monkeypatch.setattr(fast.Switches, "chosen", classmethod(lambda cls, *_, made=switches: made))
        training.train(
            {**tiny, "algorithm": algorithm, "rs_fast": True, "rs_loader": "batched", "save_name": f"lazy{lazy}"},
            note=silent,
        )
        lines.append(hooks.read_metrics(Path(tiny["save_dir"]) / f"lazy{lazy}" / "metrics.jsonl"))
    for eager, late in zip(*lines, strict=True):
        assert eager.keys() == late.keys()
        for key in eager.keys() - {"train/run_time", "train/prefetch_time"}:
            assert late[key] == pytest.approx(eager[key], rel=1e-5, abs=1e-6), key


@pytest.mark.slow
def test_compiled_network_reaches_a_similar_accuracy(tiny: dict[str, Any]) -> None:
    plain = training.train({**tiny, "rs_fast": True, "rs_loader": "batched", "save_name": "plain"}, note=silent)
    compiled = training.train(
        {**tiny, "rs_fast": True, "rs_loader": "batched", "rs_compile": True, "save_name": "compiled"}, note=silent
    )
    assert compiled["accuracy"]["last"] == pytest.approx(plain["accuracy"]["last"], abs=0.1)


# evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_in_bfloat16_is_close_and_changes_no_weight(tiny: dict[str, Any]) -> None:
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16 products")
    plain, fewer_bits = (build(tiny, algorithm="fixmatch", rs_eval_bf16=value) for value in (False, True))
    before = {name: value.clone() for name, value in fewer_bits.model.state_dict().items()}
    exact, close = (a.evaluate(return_logits=True)["eval/logits"] for a in (plain, fewer_bits))
    error = np.linalg.norm(close - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.02 and (close.argmax(1) == exact.argmax(1)).mean() > 0.97
    assert all(torch.equal(before[name], value) for name, value in fewer_bits.model.state_dict().items())
