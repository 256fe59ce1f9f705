"""Test settings: eight host devices, strict JAX, and the real data where it is at hand."""

import os
import pathlib

# Before jax is imported anywhere: eight devices on the host, so that every mesh can be tried.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real inputs; a test that asks for it is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def torch():
    """torch, for parity; missing torch is a failure in CI and a skip elsewhere."""
    try:
        import torch
    except ImportError:
        if os.environ.get("CI") == "true":
            pytest.fail("CI=true and torch is missing: install the parity extra")
        pytest.skip("torch is not installed (extra: parity)")
    torch.set_num_threads(2)
    return torch
