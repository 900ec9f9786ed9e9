"""What KubeRay's published schema says of the fields that deploy/rayservice.yaml uses.

Distilled from KubeRay's CustomResourceDefinition `rayservices.ray.io` v1 (in its Helm chart, commit
02a80a6) and narrowed to the fields that releases since 1.5.1 have: an older operator refuses later
ones (`priority`, `backend`, `networkPolicy`...) as unknown. Pod fields are those of Kubernetes' own
core/v1. Fields that the manifest has no use for are left out, so that a new one is looked up before
it is written here.
"""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_QUANTITY: Schema = {
    "anyOf": [
        {"type": "integer"},
        {
            "type": "string",
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
            r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        },
    ]
}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object whose other keys are refused, as `kubectl apply` does."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


def _map(value: Schema) -> Schema:
    return {"type": "object", "additionalProperties": value}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


_RESOURCES = _object(requests=_map(_QUANTITY), limits=_map(_QUANTITY))
_FROM = _object(secretKeyRef=_object(("key",), name=_TEXT, key=_TEXT, optional=_FLAG))
_ENV = _object(("name",), name=_TEXT, value=_TEXT, valueFrom=_FROM)
_PROBE = _object(
    exec=_object(command=_list(_TEXT)),
    initialDelaySeconds=_COUNT,
    periodSeconds=_COUNT,
    timeoutSeconds=_COUNT,
    successThreshold=_COUNT,
    failureThreshold=_COUNT,
)
_CONTAINER = _object(
    ("name",),
    name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=_TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    workingDir=_TEXT,
    env=_list(_ENV),
    ports=_list(_object(("containerPort",), name=_TEXT, containerPort=_COUNT, protocol=_TEXT)),
    resources=_RESOURCES,
    livenessProbe=_PROBE,
    readinessProbe=_PROBE,
    volumeMounts=_list(
        _object(("name", "mountPath"), name=_TEXT, mountPath=_TEXT, readOnly=_FLAG, subPath=_TEXT)
    ),
)
_VOLUME = _object(
    ("name",),
    name=_TEXT,
    persistentVolumeClaim=_object(("claimName",), claimName=_TEXT, readOnly=_FLAG),
)
_POD = _object(
    ("containers",),
    containers=_list(_CONTAINER),
    nodeSelector=_map(_TEXT),
    tolerations=_list(_object(key=_TEXT, operator=_TEXT, value=_TEXT, effect=_TEXT)),
    terminationGracePeriodSeconds=_COUNT,
    serviceAccountName=_TEXT,
    volumes=_list(_VOLUME),
)
_METADATA = _object(name=_TEXT, namespace=_TEXT, labels=_map(_TEXT), annotations=_map(_TEXT))
_TEMPLATE = _object(metadata=_METADATA, spec=_POD)
_HEAD = _object(
    ("rayStartParams", "template"),
    rayStartParams=_map(_TEXT),
    serviceType=_TEXT,
    enableIngress=_FLAG,
    template=_TEMPLATE,
)
_WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_map(_TEXT),
    template=_TEMPLATE,
)
_AUTOSCALER = _object(
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources=_RESOURCES,
    env=_list(_ENV),
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_AUTOSCALER,
    gcsFaultToleranceOptions=_object(
        ("redisAddress",),  # no longer required since other backends exist
        redisAddress=_TEXT,
        redisUsername=_object(value=_TEXT, valueFrom=_FROM),
        redisPassword=_object(value=_TEXT, valueFrom=_FROM),
        externalStorageNamespace=_TEXT,
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs=_list(_WORKERS),
)
RAY_SERVICE = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=_METADATA,
    spec=_object(
        ("rayClusterConfig",),
        serveConfigV2=_TEXT,
        rayClusterConfig=_CLUSTER,
        excludeHeadPodFromServeSvc=_FLAG,
        rayClusterDeletionDelaySeconds=_COUNT,
        upgradeStrategy=_object(type={"enum": ["NewCluster", "None"]}),
    ),
)
"""The whole manifest."""
