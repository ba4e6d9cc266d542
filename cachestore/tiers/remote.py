"""A remote tier by its URL, with a breaker before it."""

from urllib.parse import parse_qsl, urlsplit

from flowserve.cachestore.tier import Tier
from flowserve.cachestore.tiers import s3, valkey
from flowserve.cachestore.tiers.breaker import Breaker
from flowserve.errors import ConfigError
from flowserve.ids import Seconds

KNOWN_OF_S3 = ("endpoint", "region")


def open_remote(url: str, ttl_s: Seconds | None = None) -> Breaker:
    """`valkey://host:6379/0` (or `redis:`, `rediss:`), or `s3://bucket/prefix?endpoint=http://host:9000&region=x`.

    Nothing is contacted yet. Raises ConfigError.
    """
    return Breaker(_s3(url, ttl_s) if urlsplit(url).scheme == "s3" else _valkey(url, ttl_s))


def _valkey(url: str, ttl_s: Seconds | None) -> Tier:
    if urlsplit(url).scheme not in valkey.SCHEMES:
        raise ConfigError(
            f"remote tier: expected a URL of scheme s3, {', '.join(valkey.SCHEMES)}; got scheme '{urlsplit(url).scheme}'"
        )
    return valkey.ValkeyTier(url, ttl_s=ttl_s)


def _s3(url: str, ttl_s: Seconds | None) -> Tier:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(set(options) - set(KNOWN_OF_S3)):
        raise ConfigError(f"remote tier '{url}': unknown '{unknown[0]}'; known are {', '.join(KNOWN_OF_S3)}")
    if not parts.netloc:
        raise ConfigError(f"remote tier '{url}': expected a bucket, as s3://bucket/prefix")
    if ttl_s is not None:
        raise ConfigError(f"remote tier '{url}': objects expire by the bucket's lifecycle rule; leave ttl_s out")
    prefix = parts.path.strip("/") or "flowserve"
    return s3.S3Tier(parts.netloc, prefix, options.get("endpoint"), options.get("region"))
