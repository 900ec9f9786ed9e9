"""Finds what would keep the application from starting, before Ray is started.

`serve run` does not end when an application fails to deploy, and Ray's own schema ignores keys
that it does not know. So everything that can be known from the file and the machine is checked
here, and said in one line.
"""

import errno
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from serve_app.errors import ServeAppError
from serve_app.fleet.pins import more_of
from serve_app.fleet.share import share_of
from serve_app.registry.catalog import Registry
from serve_app.scaling.check import check_autoscaling
from serve_app.settings import AppArgs, DetectorConfig, SettingsError
from serve_app.types import Copies, ModelKey, ModelRef

IMPORT_PATH = "serve_app.app:build"
DEPLOYMENTS = ("Detector", "Ingress")
_RAY_MODELS: dict[str, type[BaseModel]] = {
    "request_router_config": RequestRouterConfig,
}


def load_config(path: Path) -> dict[str, Any]:
    """Read a Serve config file and check every part of it that can be checked.

    Raises:
        SettingsError: in one line, naming the key that is wrong
    """
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: expected a Serve config with 'applications', see README.md")
    check_config(config)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Check a whole Serve config; raise SettingsError naming the key that is wrong."""
    _check_keys("", config, ServeDeploySchema)
    _check_keys("http_options.", config.get("http_options") or {}, HTTPOptionsSchema)
    for application in _mappings("applications", config.get("applications")):
        _mappings("deployments", application.get("deployments"))
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{where}: {first['msg']}") from None
    if not config["applications"]:
        raise SettingsError("applications: the list is empty, so there is nothing to serve")
    for application in config["applications"]:
        _check_application(application)
    if not any(map(_is_ours, config["applications"])):
        raise SettingsError(f"applications: none has the import_path {IMPORT_PATH}")


def _mappings(where: str, values: object) -> list[Mapping[str, Any]]:
    """Return a list of mappings as it is, an absent one as an empty list."""
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise SettingsError(f"{where}: expected a list of entries of the form 'name: value'")
    return values


def _is_ours(application: Mapping[str, Any]) -> bool:
    # Ray takes a dot for the colon.
    return str(application.get("import_path")).replace(":", ".") == IMPORT_PATH.replace(":", ".")


def _check_application(application: Mapping[str, Any]) -> None:
    _check_keys("application.", application, ServeApplicationSchema)
    if not _is_ours(application):
        return
    _prefixed("args", lambda: AppArgs.parse(application.get("args")))
    for deployment in application.get("deployments") or ():
        name = deployment.get("name")
        if name not in DEPLOYMENTS:
            known = ", ".join(DEPLOYMENTS)
            raise SettingsError(f"deployments: none is called {name!r}, only {known}")
        _check_deployment(name, deployment)


def _check_deployment(name: str, deployment: Mapping[str, Any]) -> None:
    _check_keys(f"{name}.", deployment, DeploymentSchema)
    if name == "Detector":
        _prefixed(
            f"{name}.user_config", lambda: DetectorConfig.parse(deployment.get("user_config"))
        )
    autoscaling = deployment.get("autoscaling_config")
    if isinstance(autoscaling, Mapping):
        _prefixed(f"{name}.autoscaling_config", partial(check_autoscaling, autoscaling))
    for key, model in _RAY_MODELS.items():
        values = deployment.get(key)
        if isinstance(values, Mapping):
            _check_keys(f"{name}.{key}.", values, model)
            _prefixed(f"{name}.{key}", partial(model, **values))


def _check_keys(prefix: str, values: Mapping[str, Any], model: type[BaseModel]) -> None:
    known = model.model_fields
    for key in values:
        if key not in known:
            raise SettingsError(f"{prefix}{key}: unknown key; known keys: {', '.join(known)}")


def _prefixed(where: str, check: Callable[[], object]) -> None:
    try:
        check()
    except SettingsError as error:
        raise SettingsError(f"{where}.{error}") from None
    except (ValidationError, ValueError) as error:
        raise SettingsError(f"{where}: {' '.join(str(error).split())}") from None


def check_models(config: Mapping[str, Any]) -> int:
    """Return how many models the applications offer.

    Raises:
        SettingsError: there is none, or a pinned or preloaded one does not exist
    """
    total = 0
    for application in config["applications"]:
        if not _is_ours(application):
            continue
        args = AppArgs.parse(application.get("args"))
        registry = _registry(args)
        found = len(registry.snapshot.specs)
        if not found:
            raise SettingsError(
                f"args.repository: no model in {args.repository}: put one at "
                f"{args.repository}/<name>/<version>/model.pt"
            )
        for deployment in application.get("deployments") or ():
            if deployment.get("name") == "Detector":
                detector = DetectorConfig.parse(deployment.get("user_config"))
                _check_named(detector, registry, deployment.get("num_replicas"))
        total += found
    return total


def _registry(args: AppArgs) -> Registry:
    try:
        registry = Registry.from_settings(args, cards=False)
    except ServeAppError as error:
        raise SettingsError(f"args.{error.detail}") from None
    registry.refresh()
    return registry


def _check_named(config: DetectorConfig, registry: Registry, replicas: object) -> None:
    wanted: dict[ModelKey, Copies] = {}
    for setting in ("pinned", "preload"):
        try:
            for entry in getattr(config, setting):
                key = registry.snapshot.resolve(ModelRef.parse(entry.model))
                wanted[key] = more_of(entry.copies, wanted.get(key, 0))
        except ServeAppError as error:
            raise SettingsError(f"Detector.user_config.{setting}: {error.detail}") from None
    count = replicas if isinstance(replicas, int) and replicas > 0 else 1
    for rank in range(count):
        share = share_of(wanted, rank, count)
        _prefixed("Detector.user_config", partial(config.check_count, share))


def check_port(host: str, port: int) -> None:
    """Raise SettingsError when something listens on the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            raise SettingsError(
                f"http_options.port: {host}:{port} {reason}: stop what listens there, "
                "or choose another port"
            ) from None


def check_device(config: Mapping[str, Any], gpus: float) -> None:
    """Raise SettingsError when GPUs are asked for and the cluster has none: it would wait."""
    for application in config["applications"]:
        ours = _is_ours(application)
        if ours and gpus < 1 and AppArgs.parse(application.get("args")).device == "cuda":
            raise SettingsError("args.device: cuda, but the cluster has no GPU: use auto or cpu")


def warnings(config: Mapping[str, Any]) -> list[str]:
    """Return what works, but probably not as it was meant: a line each."""
    return [
        "Detector.ray_actor_options replaces all of ours: num_cpus, num_gpus and the allocator's "
        "variables; write those that you want to keep (README.md, Configuration)"
        for application in config["applications"]
        if _is_ours(application)
        for deployment in application.get("deployments") or ()
        if deployment.get("name") == "Detector" and deployment.get("ray_actor_options") is not None
    ]


def address(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return the host and port that the config makes Serve listen on."""
    options = HTTPOptionsSchema.model_validate(config.get("http_options") or {})
    return options.host, options.port


def speaks_tls(config: Mapping[str, Any]) -> bool:
    """Return whether the config makes Serve speak TLS."""
    options = HTTPOptionsSchema.model_validate(config.get("http_options") or {})
    return bool(options.ssl_certfile or options.ssl_keyfile)


def names(applications: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the applications' names."""
    return [str(application.get("name", "default")) for application in applications]
