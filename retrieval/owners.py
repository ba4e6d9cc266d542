"""Whose an index is: shared ones lie in the folder of indexes, those of a tenant in a folder of its own below it.

A key is what the library calls an index: `name`, or `@tenant/name`. No name of an index begins with `@`.
"""

from urllib.parse import quote


def folder_of(tenant: str) -> str:
    """The folder of a tenant's indexes, below that of the shared ones; "" for these."""
    return f"@{quote(tenant, safe='')}" if tenant else ""


def key_of(index: str, tenant: str) -> str:
    """What the library calls index `index` of `tenant`."""
    return f"{folder_of(tenant)}/{index}" if tenant else index


def name_of(key: str) -> str:
    """The name of an index, as whoever it belongs to knows it."""
    return key.rpartition("/")[2]
