"""Records in a bucket, one object each: `<prefix>/<key>`. Any server that speaks S3 will do.

An object appears whole or not at all, also when it is uploaded in parts; layers are read by ranged GETs. Expiry is the
bucket's business (a lifecycle rule).
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flowserve.cachestore.tier import Buffer, Key
from flowserve.errors import ConfigError, StoreAway
from flowserve.ids import Bytes, Seconds

MIN_PART_BYTES: Bytes = 5 << 20
"""What S3 takes as a part, except as the last one."""
ABSENT = frozenset({"NoSuchKey", "404"})
BEHIND_THE_END = "InvalidRange"


class S3Tier:
    """Records as objects. Credentials come from where boto3 finds them: environment, profile, the machine's role."""

    name = "remote"

    def __init__(
        self,
        bucket: str,
        prefix: str = "flowserve",
        endpoint: str | None = None,
        region: str | None = None,
        part_bytes: Bytes = 64 << 20,
        connect_timeout_s: Seconds = 1.0,
        timeout_s: Seconds = 10.0,
    ) -> None:
        """`endpoint`: address of the server, None: Amazon's. `part_bytes`: longer records are uploaded in parts of so many."""
        if part_bytes < MIN_PART_BYTES:
            raise ConfigError(f"s3 tier part_bytes: expected at least {MIN_PART_BYTES}, got {part_bytes}")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client, self._transfer = _client(endpoint, region, part_bytes, connect_timeout_s, timeout_s)

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        with self._talking("put"):
            content = io.BytesIO(b"".join(parts))
            self._client.upload_fileobj(content, self._bucket, self._object(key), Config=self._transfer)

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        if length <= 0:
            return None if self.size(key) is None else b""
        wanted = f"bytes={offset}-{offset + length - 1}"
        with self._talking("read"):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._object(key), Range=wanted)
                return bytes(found["Body"].read())
            except self._client.exceptions.ClientError as error:
                if (code := _code(error)) in ABSENT:
                    return None
                if code == BEHIND_THE_END:
                    return b""
                raise

    def size(self, key: Key) -> Bytes | None:
        with self._talking("size"):
            try:
                return int(self._client.head_object(Bucket=self._bucket, Key=self._object(key))["ContentLength"])
            except self._client.exceptions.ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise

    def delete(self, key: Key) -> None:
        with self._talking("delete"):
            self._client.delete_object(Bucket=self._bucket, Key=self._object(key))

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        with self._talking("keys"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    key = _key(item["Key"].removeprefix(self._prefix))
                    if key is not None:
                        yield key, int(item["Size"])

    def close(self) -> None:
        self._client.close()

    def _object(self, key: Key) -> str:
        return f"{self._prefix}{key.hex()}"

    @contextmanager
    def _talking(self, doing: str) -> Iterator[None]:
        """The one place where the client's exceptions become ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            raise StoreAway(f"s3://{self._bucket}/{self._prefix}: {doing}: {error}") from error


def _client(
    endpoint: str | None, region: str | None, part_bytes: Bytes, connect_timeout_s: Seconds, timeout_s: Seconds
) -> tuple[Any, Any]:
    """Client and how it uploads. Checksums by trailer are left out: not every server knows them, and records have their own."""
    try:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ConfigError("s3 tier: the package is missing; pip install 'flowserve[s3]'") from error
    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 2, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else None,
    )
    try:
        client = boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"s3 tier: endpoint '{endpoint or ''}', region '{region or ''}': {error}") from error
    transfer = TransferConfig(
        multipart_threshold=part_bytes, multipart_chunksize=part_bytes, preferred_transfer_client="classic"
    )
    return client, transfer


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _key(text: str) -> Key | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
