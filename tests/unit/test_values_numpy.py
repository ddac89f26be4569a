"""numpy arrays and scalars in the codec, and that those without numpy never import it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cachebus.errors import NotSerializable
from cachebus.values import F32_ARRAY, MSGPACK, decode, encode
from tests.support.roundtrip import back, quick

np = pytest.importorskip("numpy", reason="needs numpy; to get it: pip install 'cachebus[numpy]'")
hnp = pytest.importorskip("hypothesis.extra.numpy")

dtypes = (
    hnp.scalar_dtypes()
    | hnp.byte_string_dtypes()
    | hnp.unicode_string_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.array_dtypes(hnp.scalar_dtypes(), max_size=3)
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


@quick
@given(arrays)
def test_arrays_keep_dtype_shape_and_bits(array: Any) -> None:
    found = back({"array": [array]})["array"][0]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found.flags.writeable
    assert found.flags.owndata


@pytest.mark.parametrize(
    "scalar", [np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True), np.datetime64("2026-01-02"), np.str_("x")]
)
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    for found in (back(scalar), back([1.0] * 40 + [scalar])[40], next(iter(back({scalar: 1})))):
        assert type(found) is type(scalar)
        assert found == scalar


def test_arrays_of_another_order() -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3))[::-1]
    found = back(array)
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_numpy_is_imported_only_for_those_who_use_it() -> None:
    code = (
        "import sys; from cachebus.values import encode, decode; from decimal import Decimal; "
        "decode(*encode({'a': [Decimal(1), (1, 2)]})); decode(*encode([0.5], 'f32')); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_f32_of_an_array() -> None:
    array = np.array([[0.1, math.inf], [math.nan, -3]])
    byte, payload = encode(array, "f32")
    found: Any = decode(byte, payload)
    assert byte == F32_ARRAY
    assert (found.dtype, found.shape) == (np.float32, (2, 2))
    assert found.tobytes() == array.astype(np.float32).tobytes()
    assert back(np.arange(3, dtype=np.int16), "f32").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        ("msgpack", [np.array([object()])], r"value\[0\] is a numpy array of Python objects"),
        ("msgpack", {"m": np.ma.array([1, 2], mask=[0, 1])}, r'value\["m"\] is of type numpy.*MaskedArray'),
        ("msgpack", np.datetime64("2026-01-02", "D").reshape(1).astype(object), "of Python objects"),
        ("msgpack", {"s": np.str_("ab\0")}, r'value\["s"\] is of type numpy.str_ with a NUL at its end'),
        ("msgpack", [np.bytes_(b"a\0")], r"value\[0\] is of type numpy.bytes_ with a NUL at its end"),
        ("msgpack", np.rec.array([(1,)], dtype=[("a", "<i4")]).view(np.ndarray), "numpy record"),
        ("f32", np.array([1e39]), "too large for codec f32"),
        ("f32", np.array([1j]), "takes real numbers only"),
    ],
)
def test_what_is_refused(codec: str, value: object, message: str) -> None:
    with pytest.raises(NotSerializable, match=message):
        encode(value, codec)


def test_golden_bytes() -> None:
    assert encode(np.array([[1, 2]], "<u2")) == (MSGPACK, bytes.fromhex("c70e0a93a33c7532920102c40401000200"))
    assert encode(np.float32(0.5)) == (MSGPACK, bytes.fromhex("c70b0b92a33c6634c4040000003f"))
    assert encode(np.array([0.5]), "f32") == (F32_ARRAY, bytes.fromhex("929101c4040000003f"))
