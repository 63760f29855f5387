"""Compressed bodies come in pieces of a bounded size."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.http.compression import Decompressor, EncodingError


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("identity", bytes),
    ("", bytes),
]


@pytest.mark.parametrize(("encoding", "compress"), ENCODINGS)
@given(
    data=st.binary() | st.binary(min_size=1, max_size=9).map(lambda part: part * 20_000),
    size=st.integers(1, 99),
)
def test_what_was_compressed_is_there_however_it_comes(
    encoding: str, compress: Callable[[bytes], bytes], data: bytes, size: int
) -> None:
    decompressor, sent = Decompressor(encoding), compress(data)
    size = max(size, len(sent) // 50)
    chunks = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert b"".join(piece for chunk in chunks for piece in decompressor.feed(chunk)) == data


@pytest.mark.parametrize(("encoding", "compress"), ENCODINGS[:4])
def test_no_piece_is_large_however_much_a_chunk_stands_for(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    pieces = list(Decompressor(encoding).feed(compress(bytes(10**7))))
    assert max(map(len, pieces)) <= 16 * 1024
    assert sum(map(len, pieces)) == 10**7


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(EncodingError, match="not asked for"):
        Decompressor(encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_damaged_body_is_refused(encoding: str) -> None:
    with pytest.raises(EncodingError, match="damaged"):
        list(Decompressor(encoding).feed(b"\xff\xff\xff\xff"))
