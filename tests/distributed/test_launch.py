"""How a process finds out whether it was started alone, and what it refuses."""

import json
import os
import socket
import subprocess
import sys

import pytest

from modulate.distributed import launch
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import RecipeError

NAMES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_FSDP",
    "FSDP_VERSION",
    "FSDP_OFFLOAD_PARAMS",
    "FSDP_RESHARD_AFTER_FORWARD",
)


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launch, and no others."""

    def given(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(launch, "_joined", None)
    given()
    return given


@pytest.mark.parametrize(
    ("values", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2"}, False),
        ({"RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"PMI_SIZE": "3"}, True),
        ({"MV2_COMM_WORLD_SIZE": "4"}, True),
        ({"PMI_SIZE": "1"}, False),
        ({"WORLD_SIZE": ""}, False),
    ],
)
def test_launchers_are_known_by_what_they_set(environment, values, several):
    environment(**values)
    assert launch.launched() is several


def test_a_process_started_alone_is_a_team_of_its_own_and_stays_it(environment):
    assert (
        launch.current() is launch.join() is launch.join("cuda:0")
        and launch.current() == ProcessGroup()
    )
    launch.leave()


def test_a_single_device_for_many_and_a_launch_without_an_address_are_refused(environment):
    environment(WORLD_SIZE="2", RANK="0", MASTER_ADDR="localhost")
    with pytest.raises(
        RecipeError,
        match=r"host\.params\.device is 'cuda:0', which all processes of this run would share",
    ):
        launch.join("cuda:0")
    environment(WORLD_SIZE="2", RANK="0")
    with pytest.raises(
        RecipeError, match="RANK and WORLD_SIZE are set, as by a launcher, but MASTER_ADDR is not"
    ):
        launch.join("cpu")
    with pytest.raises(RecipeError, match="MASTER_ADDR is not"):
        launch.current()  # joins


def test_who_has_joined_stays_in_that_team(environment, monkeypatch):
    processes = ProcessGroup(1, 3)
    monkeypatch.setattr(launch, "_joined", processes)
    assert launch.current() is processes and launch.join("cuda:0") is processes


def test_several_asked_for_and_one_started_is_refused(environment):
    environment(ACCELERATE_USE_CPU="true", MASTER_ADDR="localhost")
    with pytest.raises(RecipeError, match="was asked for several processes but started one"):
        launch.join()
    for values in (
        {"ACCELERATE_USE_CPU": "true"},
        {"MASTER_ADDR": "localhost"},
        {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "localhost", "RANK": "0"},
    ):
        environment(**values)
        assert launch.join() == ProcessGroup()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, (False, True)),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, (False, True)),
        ({"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "2"}, (True, True)),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_RESHARD_AFTER_FORWARD": "False",
            },
            (True, False),
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"},
            (True, True),
        ),
    ],
)
def test_what_accelerate_asks_for_is_read_and_taken_out_of_its_way(environment, values, found):
    environment(**values)
    assert launch._sharding() == found and launch._sharding() == (False, True)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "asks for FSDP1"),
        ({"FSDP_VERSION": "1"}, "asks for FSDP1"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "True"}, "asks for fsdp_offload_params"),
    ],
)
def test_ways_to_divide_a_host_that_do_not_work_are_refused(environment, values, text):
    environment(ACCELERATE_USE_FSDP="true", **values)
    with pytest.raises(RecipeError, match=text):
        launch._sharding()


JOIN = """
import json, torch
from modulate.distributed import launch
import torch.distributed as dist
group = launch.join("cpu")
ranks = group.all_gather(group.rank)
same = launch.current() is group
timeout = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds()
launch.leave()
found = [timeout, group.rank, group.size, group.is_local_main_process, group.device]
found += [group.shards, group.reshard, group.timeout, ranks, same, dist.is_initialized()]
print(json.dumps(found))
"""


def test_processes_that_are_launched_together_are_one_team_until_they_leave():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env={**plain, **asked, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert found == [
        [1800.0, rank, 2, rank == 0, "cpu", True, False, 1800.0, [0, 1], True, False]
        for rank in range(2)
    ]
