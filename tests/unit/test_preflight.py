"""Preflight: each way in which the application cannot start is said in one line."""

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import preflight
from serve_app.settings import SettingsError

ROOT = Path(__file__).parents[2]
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    """The config that the repository ships."""
    loaded: Config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    return copy.deepcopy(loaded)


def _detector(config: Config) -> Config:
    detector: Config = config["applications"][0]["deployments"][0]
    return detector


def test_shipped_config_is_right(config: Config) -> None:
    """What the repository ships passes."""
    preflight.check_config(config)
    assert preflight.address(config) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(aplications=1), "aplications: unknown key"),
        (lambda c: c["http_options"].update(prot=1), r"http_options\.prot: unknown key"),
        (lambda c: c["http_options"].update(port="x"), r"http_options\.port: "),
        (lambda c: c["applications"][0].update(arg={}), r"application\.arg: unknown key"),
        (lambda c: c["applications"][0]["args"].update(repo="x"), r"args\.repo: unknown key"),
        (lambda c: c["applications"][0]["args"].update(device="tpu"), r"args\.device: "),
        (lambda c: _detector(c).update(name="Detecter"), "none is called 'Detecter'"),
        (lambda c: _detector(c).update(replicas=2), r"Detector\.replicas: unknown key"),
        (
            lambda c: _detector(c)["user_config"].update(memory_budget="much"),
            r"Detector\.user_config\.memory_budget: 'much' is no amount of memory",
        ),
        (
            lambda c: _detector(c).update(
                autoscaling_config={"min_replicas": 3, "max_replicas": 2}
            ),
            r"Detector\.autoscaling_config: .*max_replicas",
        ),
        (lambda c: c.pop("applications"), "applications: "),
        (lambda c: c["applications"][0].update(import_path="other:app"), "applications: none has"),
        (lambda c: c["applications"][0]["args"].update(cache_dir="~no-one/x"), r"args\.cache_dir"),
        (lambda c: c.update(applications=[]), "applications: the list is empty"),
        (lambda c: c["applications"][0].update(deployments=["x"]), r"deployments"),
    ],
)
def test_wrong_config_is_refused_in_one_line_that_names_the_key(
    config: Config, spoil: Callable[[Config], object], message: str
) -> None:
    """Unknown keys, wrong values and contradictions are found at every level."""
    spoil(config)
    with pytest.raises(SettingsError, match=message) as caught:
        preflight.check_config(config)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing file and broken YAML are said in one line."""
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        preflight.load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("applications: [")
    with pytest.raises(SettingsError, match="is no valid YAML") as caught:
        preflight.load_config(broken)
    assert "\n" not in str(caught.value)


def test_a_taken_port_is_refused() -> None:
    """Something that listens already is named with its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"port: 127\.0\.0\.1:{port} is taken"):
            preflight.check_port("127.0.0.1", port)
    preflight.check_port("127.0.0.1", port)


def test_an_empty_repository_is_refused(config: Config, tmp_path: Path) -> None:
    """Without any model there is nothing to serve."""
    config["applications"][0]["args"]["repository"] = str(tmp_path)
    with pytest.raises(SettingsError, match="no model in .*put one at"):
        preflight.check_models(config)


def test_pins_must_exist(config: Config) -> None:
    """A pinned or preloaded model that is not there is named before anything starts."""
    config["applications"][0]["args"]["repository"] = str(ROOT / "models")
    assert preflight.check_models(config) >= 1
    _detector(config)["user_config"]["preload"] = ["nobody"]
    with pytest.raises(SettingsError, match=r"Detector\.user_config\.preload: no model 'nobody'"):
        preflight.check_models(config)


def test_a_wrong_official_name_is_said_by_its_key(config: Config) -> None:
    """What only the registry knows is refused in one line, too."""
    config["applications"][0]["args"]["official_models"] = ["yolo99n"]
    with pytest.raises(SettingsError, match=r"args\.official_models"):
        preflight.check_models(config)


def test_pins_and_preloads_are_counted_together(config: Config) -> None:
    """Two names of one version are one model."""
    config["applications"][0]["args"]["repository"] = str(ROOT / "models")
    user_config = _detector(config)["user_config"]
    user_config.update(max_models=1, pinned=["codes-n"], preload=["codes-n@1"])
    assert preflight.check_models(config) >= 1
    user_config.update(preload=["fasteners-n"])
    with pytest.raises(SettingsError, match=r"Detector\.user_config\.max_models: 1, but"):
        preflight.check_models(config)


def test_copies_are_counted_for_each_replica(config: Config) -> None:
    """Two replicas share what is wanted once; what is pinned bare is on both."""
    config["applications"][0]["args"]["repository"] = str(ROOT / "models")
    detector = _detector(config)
    detector["user_config"].update(max_models=1, preload=["codes-n", "fasteners-n"])
    detector["num_replicas"] = 2
    assert preflight.check_models(config) >= 1
    detector["user_config"].update(pinned=["components-n"])
    with pytest.raises(SettingsError, match=r"Detector\.user_config\.max_models: 1, but"):
        preflight.check_models(config)


def test_a_gpu_that_is_not_there_is_refused(config: Config) -> None:
    """Ray would wait for one for ever."""
    preflight.check_device(config, gpus=0)
    config["applications"][0]["args"]["device"] = "cuda"
    preflight.check_device(config, gpus=1)
    with pytest.raises(SettingsError, match=r"args\.device: cuda, but the cluster has no GPU"):
        preflight.check_device(config, gpus=0)


def test_actor_options_that_replace_ours_are_warned_of(config: Config) -> None:
    """Ray does not merge them: a GPU and the allocator's settings would be lost without a word."""
    assert preflight.warnings(config) == []
    _detector(config)["ray_actor_options"] = {"num_cpus": 2}
    preflight.check_config(config)
    (line,) = preflight.warnings(config)
    assert line.startswith("Detector.ray_actor_options replaces all of ours")
    config["applications"][0]["deployments"][0]["name"] = "Ingress"
    assert preflight.warnings(config) == []


def test_tls_is_noticed(config: Config) -> None:
    """HAProxy would serve the same port without it."""
    assert not preflight.speaks_tls(config)
    config["http_options"].update(ssl_keyfile="key.pem", ssl_certfile="cert.pem")
    assert preflight.speaks_tls(config)
