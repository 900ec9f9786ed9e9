"""Which models are in memory: leases, admission, eviction; nothing of HTTP, Ray or tensors."""

from serve_app.cache.admission import CacheLimits
from serve_app.cache.lease import Lease
from serve_app.cache.loader import Loaded, ModelLoader, Prepared
from serve_app.cache.model_cache import ModelCache
from serve_app.cache.observer import CacheObserver, EvictionReason, NullObserver, Outcome
from serve_app.cache.policies import GDSF, LRU, POLICIES, Policy, Usage

__all__ = [
    "GDSF",
    "LRU",
    "POLICIES",
    "CacheLimits",
    "CacheObserver",
    "EvictionReason",
    "Lease",
    "Loaded",
    "ModelCache",
    "ModelLoader",
    "NullObserver",
    "Outcome",
    "Policy",
    "Prepared",
    "Usage",
]
