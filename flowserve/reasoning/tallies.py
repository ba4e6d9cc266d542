"""What the shadows of a certificate have shown, kept beside it, so that a restart forgets nothing and replicas that share a folder count
together: a file of lines, one verdict each, that is only ever appended to."""

import os
from collections import Counter
from pathlib import Path

from flowserve.errors import StoreError
from flowserve.reasoning.certificates import Certificate, Certificates
from flowserve.reasoning.shadow import Shadow, Verdict

_VERDICTS = {verdict.name.lower().encode(): verdict for verdict in Verdict}


def path_of(folder: Path, certificate: Certificate) -> Path:
    """Where the verdicts of a certificate stand. One that was calibrated anew begins with none."""
    stem = Certificates(folder).path(certificate.subject).stem
    return folder / f"{stem}.{certificate.created:%Y%m%dT%H%M%S}.shadows"


def told(folder: Path, certificate: Certificate, verdict: Verdict) -> Shadow:
    """Keep `verdict`; what all of them show. Raises StoreError."""
    path = path_of(folder, certificate)
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, verdict.name.lower().encode() + b"\n")
        finally:
            os.close(file)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise StoreError(f"{path}: the verdict of a shadow cannot be kept: {error}") from error
    return Shadow(certificate, tally=dict(Counter(_VERDICTS[line] for line in lines if line in _VERDICTS)))
