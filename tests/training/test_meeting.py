"""Processes that are started to train together find one another, or end soon with a line that says why."""

import socket
import threading
import time

import pytest

from patchform import distributed
from patchform.errors import PatchformError, ResourceError, UsageError


@pytest.fixture
def listener():
    """A program that is no run of ours: it listens and says nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def unused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def free_port():
    return unused()


@pytest.fixture
def place(monkeypatch):
    """What torchrun says of a process; all waiting is short."""
    monkeypatch.setattr(distributed, "MEETING", 0.6)
    monkeypatch.setattr(distributed, "ANSWER", 3.0)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    def of(port, rank=0, **more):
        told = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | more
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    return of


def refusal(kind, match):
    begun = time.monotonic()
    with pytest.raises(kind, match=match) as caught, distributed.process_group():
        pass
    assert time.monotonic() - begun < 20
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_ends_the_first_process(place, listener):
    place(listener)
    refusal(ResourceError, rf"port {listener} of this machine cannot be had .*; name another MASTER_PORT")


def test_and_the_others_which_hear_no_answer_there(place, listener):
    place(listener, rank=1)
    refusal(ResourceError, rf"what listens there is no process of this run in 127.0.0.1:{listener}; name another")


def test_a_process_that_never_comes_is_not_waited_for_long(place, free_port):
    place(free_port)
    refusal(ResourceError, "1 of 2 processes did not come within 1 seconds; start all of them together")
    place(unused(), rank=1)
    refusal(ResourceError, "the first process did not come within 1 seconds .*name the machine of the first process")


def test_the_store_of_another_run_is_no_meeting_place(place, free_port):
    """Its keys are those of processes that met long ago; nobody answers there."""
    place(free_port)
    store = distributed.dist.TCPStore("127.0.0.1", free_port, 2, True, wait_for_workers=False)
    store.set("here/1", "old")
    store.set("seen/old", "")
    place(free_port, rank=1)
    refusal(ResourceError, "the first process did not come within 1 seconds")


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"MASTER_ADDR": "no such machine"}, "MASTER_ADDR 'no such machine' is no machine"),
        ({"MASTER_ADDR": "a" * 70}, "is no machine"),
        ({"RANK": "first"}, "RANK is 'first', not a number from 0"),
        ({"RANK": 2}, "RANK 2 of 2"),
        ({"RANK": -1}, "RANK is '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number from 1"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE is '0'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"MASTER_PORT": 70000}, "at port 70000 is no place"),
    ],
)
def test_a_place_that_is_none_is_refused(place, free_port, told, what):
    place(free_port, **told)
    refusal(UsageError, what)


def test_two_that_come_apart_meet(place, free_port, monkeypatch):
    """The second one is there before the first one listens."""
    monkeypatch.setattr(distributed, "MEETING", 20.0)
    place(free_port, rank=1)
    found = {}

    def meet():
        try:
            found["second"] = distributed._meet()[0]
        except PatchformError as error:
            found["second"] = error

    second = threading.Thread(target=meet)
    second.start()
    time.sleep(0.5)
    place(free_port, rank=0)
    rank, store = distributed._meet()  # which lives here
    second.join(20)
    assert (rank, found["second"]) == (distributed.Rank(0, 2), distributed.Rank(1, 2))
    del store
