"""Records in Valkey, or in any server that speaks its protocol (Redis from 4.0 on, KeyDB, Dragonfly).

    <namespace>:record:<key>                 header, then the record itself where it is whole
    <namespace>:part:<key>:<batch>:<i>       parts of a record that is too long for one value

The header is written last, together with the time that the parts are to live: until then they are nobody's and vanish by
themselves. All of a record is replaced by one transaction, so a reader sees the old one, the new one or a miss.
"""

import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flowserve.cachestore.tier import Buffer, Key
from flowserve.errors import ConfigError, StoreAway, StoreError
from flowserve.ids import Bytes, Seconds

SCHEMES = ("valkey", "valkeys", "redis", "rediss", "unix")
HEADER = struct.Struct("<QQQ")
WHOLE = 0
"""The batch of records that stand behind their header."""
STAGING_S: Seconds = 600
"""How long parts wait for their header. Whoever writes longer than that has written nothing."""
MAX_VALUE_BYTES: Bytes = 512 << 20
"""What servers take as one value, by default (`proto-max-bulk-len`)."""
MAX_PARTS = 4096
"""Of a record. A header that claims more is no header of ours: nothing that a server says may cost us more memory than this."""


class Header(NamedTuple):
    """What stands before every record."""

    batch: int
    """Number of the parts' batch, WHOLE if there are none."""
    size: Bytes
    """Of the record, without this."""
    part_bytes: Bytes
    """Of every part but the last."""


class ValkeyTier:
    """Records as strings; a layer is read by GETRANGE. The client is thread-safe and makes a connection per thread in use."""

    name = "remote"

    def __init__(
        self,
        url: str,
        namespace: str = "flowserve",
        ttl_s: Seconds | None = None,
        part_bytes: Bytes = 64 << 20,
        connect_timeout_s: Seconds = 0.5,
        timeout_s: Seconds = 5.0,
    ) -> None:
        """`ttl_s`: records are forgotten so long after they were put; None: when the server wants the room."""
        if not 0 < part_bytes <= MAX_VALUE_BYTES - HEADER.size:
            raise ConfigError(
                f"valkey tier part_bytes: expected 1 to {MAX_VALUE_BYTES - HEADER.size}, got {part_bytes}"
            )
        if ttl_s is not None and ttl_s < 0.001:
            raise ConfigError(f"valkey tier ttl_s: expected at least 0.001 seconds, got {ttl_s}")
        self._where = _where(url)
        self._namespace = namespace
        self._ttl_ms = None if ttl_s is None else int(ttl_s * 1000)
        self._part_bytes = part_bytes
        self._client = _client(url, connect_timeout_s, timeout_s)

    def put(self, key: Key, parts: Sequence[Buffer]) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        if size > MAX_PARTS * self._part_bytes:
            raise StoreError(
                f"{self._where}: expected a record of at most {MAX_PARTS} parts of {self._part_bytes} bytes; "
                f"got {size} bytes: make part_bytes greater"
            )
        if size <= self._part_bytes:
            header = Header(WHOLE, size, size)
            self._commit(key, header, b"".join((HEADER.pack(*header), *parts)))
        else:
            header = Header(secrets.randbits(63) + 1, size, self._part_bytes)
            self._stage(key, header, memoryview(b"".join(parts)))
            self._commit(key, header, HEADER.pack(*header))

    def read(self, key: Key, offset: Bytes, length: Bytes) -> Buffer | None:
        with self._talking("read"), self._client.pipeline(transaction=True) as pipeline:
            pipeline.getrange(self._record(key), 0, HEADER.size - 1)
            _queue_range(pipeline, self._record(key), HEADER.size + offset, length)
            head, body = pipeline.execute()
        header = _header(head)
        if header is None or header.batch == WHOLE:
            return None if header is None else body
        return self._read_parts(key, header, offset, min(length, header.size - offset))

    def size(self, key: Key) -> Bytes | None:
        with self._talking("size"):
            header = _header(self._client.getrange(self._record(key), 0, HEADER.size - 1))
        return None if header is None else header.size

    def delete(self, key: Key) -> None:
        with self._talking("delete"), self._client.pipeline(transaction=True) as pipeline:
            pipeline.getrange(self._record(key), 0, HEADER.size - 1)
            pipeline.unlink(self._record(key))
            self._forget_parts(key, _header(pipeline.execute()[0]))

    def keys(self) -> Iterator[tuple[Key, Bytes]]:
        """What is put or replaced while this goes on may come twice, or not."""
        prefix = self._record(b"")
        pattern = "".join(f"[{letter}]" if letter in "*?[]^\\" else letter for letter in prefix)
        cursor: int | None = None
        while cursor != 0:
            with self._talking("keys"), self._client.pipeline(transaction=False) as pipeline:
                cursor, names = self._client.scan(cursor or 0, match=f"{pattern}*", count=1000)
                for name in names:
                    pipeline.getrange(name, 0, HEADER.size - 1)
                headers = [_header(head) for head in pipeline.execute()]
            for name, header in zip(names, headers, strict=True):
                key = _key(name.decode(errors="replace").removeprefix(prefix))
                if key is not None and header is not None:
                    yield key, header.size

    def close(self) -> None:
        self._client.close()

    def _stage(self, key: Key, header: Header, content: memoryview) -> None:
        with self._talking("put"):
            for index, start in enumerate(range(0, header.size, header.part_bytes)):
                piece = content[start : start + header.part_bytes]
                self._client.set(self._part(key, header, index), piece, px=int(STAGING_S * 1000))

    def _commit(self, key: Key, header: Header, value: bytes) -> None:
        """Make it what is there under the key. Raises StoreError when the server has dropped a part meanwhile."""
        names = self._parts(key, header)
        with self._talking("put"), self._client.pipeline(transaction=True) as pipeline:
            pipeline.getrange(self._record(key), 0, HEADER.size - 1)
            pipeline.set(self._record(key), value, px=self._ttl_ms)
            for name in names:
                if self._ttl_ms is None:
                    pipeline.persist(name)
                else:
                    pipeline.pexpire(name, self._ttl_ms)
            before, _, *kept = pipeline.execute()
            self._forget_parts(key, _header(before))
        if not all(kept):
            self.delete(key)
            raise StoreError(
                f"{self._where}: {kept.count(False)} of {len(names)} parts were dropped before the last came"
            )

    def _read_parts(self, key: Key, header: Header, offset: Bytes, length: Bytes) -> Buffer | None:
        """None when a part is not there any longer: the record was replaced, or the server wanted the room."""
        with self._talking("read"), self._client.pipeline(transaction=False) as pipeline:
            for index, start, count in _pieces(header.part_bytes, offset, length):
                _queue_range(pipeline, self._part(key, header, index), start, count)
            found = b"".join(pipeline.execute())
        return found if len(found) == max(0, length) else None

    def _forget_parts(self, key: Key, header: Header | None) -> None:
        if header is not None and header.batch != WHOLE:
            self._client.unlink(*self._parts(key, header))

    def _record(self, key: Key) -> str:
        return f"{self._namespace}:record:{key.hex()}"

    def _part(self, key: Key, header: Header, index: int) -> str:
        return f"{self._namespace}:part:{key.hex()}:{header.batch:016x}:{index}"

    def _parts(self, key: Key, header: Header) -> list[str]:
        if header.batch == WHOLE:
            return []
        return [self._part(key, header, index) for index in range(-(-header.size // header.part_bytes))]

    @contextmanager
    def _talking(self, doing: str) -> Iterator[None]:
        """The one place where the client's exceptions become ours."""
        from valkey import exceptions

        try:
            yield
        except exceptions.OutOfMemoryError as error:
            raise StoreError(f"{self._where}: {doing}: the server has no room: {error}") from error
        except (exceptions.ValkeyError, OSError) as error:
            raise StoreAway(f"{self._where}: {doing}: {error}") from error


def _client(url: str, connect_timeout_s: Seconds, timeout_s: Seconds) -> Any:
    """The pool opens a connection anew that was broken since its last use; nothing else is tried twice."""
    try:
        from valkey import Valkey
    except ImportError as error:
        raise ConfigError(f"{_where(url)}: the package is missing; pip install 'flowserve[valkey]'") from error
    try:
        client = Valkey.from_url(url, socket_connect_timeout=connect_timeout_s, socket_timeout=timeout_s)
        pool = client.connection_pool
        pool.connection_class(
            **pool.connection_kwargs
        )  # one that never connects: it says what is wrong with the options
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_where(url)}: expected options that the client knows: {error}") from error
    return client


def _where(url: str) -> str:
    """The URL without what nobody may read. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"valkey tier: expected a URL such as valkey://host:6379/0, got scheme '{parts.scheme}'")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ConfigError(f"valkey tier at {parts.hostname}: {error}") from error
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _header(head: bytes) -> Header | None:
    """None: there is no record."""
    if len(head) < HEADER.size:
        return None
    header = Header._make(HEADER.unpack(head))
    return header if header.size <= MAX_PARTS * header.part_bytes else None


def _key(text: str) -> Key | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _queue_range(pipeline: Any, name: str, start: Bytes, count: Bytes) -> None:
    """Ends are inclusive there, so a range of nothing has to begin behind everything."""
    if count > 0:
        pipeline.getrange(name, start, start + count - 1)
    else:
        pipeline.getrange(name, 1, 0)


def _pieces(part_bytes: Bytes, offset: Bytes, length: Bytes) -> Iterator[tuple[int, Bytes, Bytes]]:
    """Which part, from where in it, how much."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, part_bytes)
        count = min(part_bytes - start, end - offset)
        yield index, start, count
        offset += count
