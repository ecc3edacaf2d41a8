"""What tests of several folders share."""

import pytest


@pytest.fixture
def cuda() -> str:
    """The device name, for tests marked `gpu`; elsewhere they are skipped."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return "cuda"
