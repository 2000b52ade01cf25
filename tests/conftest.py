"""Shared fixtures: small real hosts, clips, and modulations with weights that do something."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

pytest.register_assert_rewrite(
    "modulate_hosts.contract"
)  # rows of the contract live in the package, and fail as tests do

import torch  # noqa: E402

from modulate import plugins  # noqa: E402
from modulate.hosts import verified_versions as verified  # noqa: E402
from tests.tiny import CLIP, fresh, our_hooks, qwen  # noqa: E402

torch.set_num_threads(
    1
)  # models this small gain nothing from a second thread, and lose a lot where cores are busy


@pytest.fixture(scope="session", autouse=True)
def every_family_is_taken_for_verified():
    """Here and in processes that tests start: the suite is what proves the releases installed.

    What the user's machine remembers is left alone.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(verified.CACHE_VARIABLE, folder)
        verified.add_locally_verified(
            verified.LibraryVersions.installed(),
            verified.contract_results(plugins.registry())["families"],
        )
        yield


@pytest.fixture
def host():
    """A host of the test's own, so that no test meets what another one did to it."""
    host = qwen()
    yield host
    assert not our_hooks(host), "a test left hooks of ours on its host"


@pytest.fixture
def modulation(host):
    """A modulation whose output projections are not zero any more."""
    modulation = fresh(host)
    torch.manual_seed(1)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    return modulation.eval()


@pytest.fixture
def clip():
    return CLIP
