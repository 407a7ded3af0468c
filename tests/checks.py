"""What many tests ask of an error: its class, one sentence, and the facts that help to mend it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from viditq.errors import ViditqError


@contextmanager
def refuses(kind: type[ViditqError], *facts: str) -> Iterator[None]:
    """The block raises exactly ``kind``, with one sentence that holds every one of ``facts``."""
    with pytest.raises(ViditqError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {message}"
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not re.search(r"object at 0x|Traceback|For further information", message)
    for fact in facts:
        assert fact in message
