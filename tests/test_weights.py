"""The device class of weights: torch's word where it can have a GPU, and no import of torch where it cannot."""

import subprocess
import sys

import pytest

from curate import weights


def absent(name: str) -> None:
    raise OSError(name)


@pytest.mark.parametrize(("driver", "build", "available", "expected"), [
    (str, "2.15.0", True, "cuda"),
    (str, "2.15.0", False, "cpu"),
    (absent, "2.15.0+rocm7.0", True, "cuda"),
    (absent, "2.15.0+rocm7.0", False, "cpu"),
    (absent, "2.15.0", True, "cpu"),
], ids=["driver and GPU", "driver alone", "AMD's build and GPU", "AMD's build alone", "neither"])
def test_torch_is_asked_where_it_may_have_a_gpu(driver: object, build: str, available: bool, expected: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    monkeypatch.setattr(weights, "CDLL", driver)
    monkeypatch.setattr(weights.metadata, "version", {"torch": build}.__getitem__)
    assert weights.device_class() == expected


def test_without_a_driver_nobody_waits_for_torch() -> None:
    code = ("import sys; from curate import weights; weights.DRIVER = 'libnone.so.1'; assert weights.device_class() == 'cpu'; "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
