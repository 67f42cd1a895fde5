"""Importing the package registers RSMatch once, in any order of imports; USB's notebook code then works on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.errors import UserError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import usb_rsmatch; from semilearn.algorithms import name2alg",
        "import semilearn; import usb_rsmatch; from semilearn.algorithms import name2alg",
        "import usb_rsmatch, importlib.util as u; u.find_spec('semilearn'); from semilearn.algorithms import name2alg",
        "import usb_rsmatch.detection.hook; from semilearn.algorithms import name2alg",
        "import usb_rsmatch.data.views.loaders; from semilearn.algorithms import name2alg",
        "from usb_rsmatch.algorithms.rsmatch import RSMatch; from semilearn.algorithms import name2alg",
    ],
)
def test_rsmatch_is_registered_in_any_order_of_imports(code: str) -> None:
    check = "\nimport semilearn\nprint('rsmatch' in name2alg, hasattr(semilearn.nets, 'small_wrn_10_1'))"
    done = python(code + check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["True", "True"]
    assert "already in registry" not in done.stdout


def test_registering_twice_changes_nothing_and_a_collision_warns() -> None:
    code = """
import warnings, usb_rsmatch, semilearn
from semilearn.core.utils import ALGORITHMS
from usb_rsmatch.usb import registration
ours, config = ALGORITHMS['rsmatch'], semilearn.get_config
registration.install(); registration.register()
assert ALGORITHMS['rsmatch'] is ours and semilearn.get_config is config
ALGORITHMS._dict['rsmatch'] = dict
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    registration.register()
assert any("registered as 'rsmatch' already" in str(w.message) for w in caught), caught
assert ALGORITHMS['rsmatch'] is dict
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_semilearn() -> None:
    done = python("import sys, usb_rsmatch, usb_rsmatch.cli; print('torch' in sys.modules, 'semilearn' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("name", ["fixmatch", "rsmatch"])
def test_usbs_notebook_code_trains_on_a_cpu(name: str, tiny: dict[str, Any]) -> None:
    import torch
    from semilearn import Trainer, get_algorithm, get_config, get_data_loader, get_dataset, get_net_builder

    import usb_rsmatch  # noqa: F401

    config = get_config({**tiny, "algorithm": name, "num_classes": 10, "img_size": 8, "gpu": None})
    algorithm = get_algorithm(config, get_net_builder(config.net, from_name=False), tb_log=None, logger=None)
    data = get_dataset(config, config.algorithm, config.dataset, config.num_labels, config.num_classes)
    train_lb = get_data_loader(config, data["train_lb"], config.batch_size, num_workers=0)
    train_ulb = get_data_loader(config, data["train_ulb"], config.batch_size * config.uratio, num_workers=0)
    evaluation = get_data_loader(config, data["eval"], 128, data_sampler=None, drop_last=False, num_workers=0)
    before = {key: value.clone() for key, value in algorithm.model.state_dict().items()}
    trainer = Trainer(config, algorithm)
    trainer.fit(train_lb, train_ulb, evaluation)
    assert algorithm.it == config.num_train_iter
    assert any(not torch.equal(value, before[key]) for key, value in algorithm.model.state_dict().items())
    assert 0 <= trainer.evaluate(evaluation)["acc"] <= 1
    predictions, probabilities, truth = trainer.predict(evaluation, use_ema_model=True, return_gt=True)
    assert predictions.shape == truth.shape and probabilities.shape == (len(truth), 10)
    latest = Path(config.save_dir) / config.save_name / "latest_model.pth"
    written = latest.read_bytes()
    trainer.fit(train_lb, train_ulb, evaluation)  # running the cell again: all steps are done
    assert latest.read_bytes() == written


@pytest.mark.parametrize("given", [["fused", "channels_last"], "fused, channels_last"])
def test_a_notebook_accepts_a_list_of_switches(given: list[str] | str, tiny: dict[str, Any]) -> None:
    from semilearn import get_algorithm, get_config, get_net_builder

    import usb_rsmatch  # noqa: F401
    from usb_rsmatch.usb.fast import Switches

    config = get_config({**tiny, "num_classes": 10, "img_size": 8, "gpu": None, "rs_fast": given})
    algorithm = get_algorithm(config, get_net_builder(config.net, from_name=False), tb_log=None, logger=None)
    assert algorithm._switches == Switches(channels_last=True, fused=True)


def test_usbs_parser_accepts_keys_that_take_values_or_words() -> None:
    import argparse

    import usb_rsmatch  # noqa: F401
    from usb_rsmatch.algorithms.rsmatch import RSMatch

    parser = argparse.ArgumentParser()
    for argument in RSMatch.get_argument():
        parser.add_argument(argument.name, type=argument.type, default=argument.default)
    args = parser.parse_args(["--rs_fast", "bf16,fused", "--rs_threshold", "adaptive", "--rs_warmup", "0.1"])
    assert (args.rs_fast, args.rs_threshold, args.rs_warmup) == ("bf16,fused", "adaptive", 0.1)
    assert (parser.parse_args([]).rs_fast, parser.parse_args([]).rs_threshold) == (False, 0.5)


def test_a_notebook_s_pool_is_rebuilt_if_its_keys_change(tiny: dict[str, Any]) -> None:
    from semilearn import get_config, get_dataset

    import usb_rsmatch  # noqa: F401

    config = get_config({**tiny, "num_classes": 10, "img_size": 8})

    def sizes(num_labels: int) -> tuple[int, int]:
        data = get_dataset(config, "fixmatch", "digits", num_labels, 10, config.data_dir)
        return len(data["train_lb"]), len(data["train_ulb"])

    assert sizes(20) == (20, 400)
    first = config.pool
    assert sizes(20) == (20, 400) and config.pool is first
    assert sizes(40) == (40, 400)
    config.synthetic_count = 100
    assert sizes(40) == (40, 300)
    with pytest.raises(UserError, match="unknown dataset 'digts': did you mean 'digits'"):
        config.synthetic = []
        get_dataset(config, "fixmatch", "digts", 20, 10, config.data_dir)
