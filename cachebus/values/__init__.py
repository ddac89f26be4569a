"""Values as bytes and back, without pickle.

`encode` gives a codec byte and a payload, `decode` the value again. What comes back has the same types and values, for
None, bool, int of any size, float, str, bytes, list, dict (with keys of these types too), set, frozenset, datetime,
date, time, timedelta, UUID, Decimal, and numpy arrays and scalars. Said once, so that nobody is surprised:

- a tuple comes back as a list (as a dict's key or in a set: as a tuple), a bytearray as bytes, and an instance of a
  subclass of str, int, list, dict ... as an instance of its base;
- an aware datetime keeps its offset from UTC, not the name of its zone;
- an Enum member comes back as its value, and a dataclass, pydantic model or msgspec Struct as a dict of its fields,
  unless `decode` is told the `model`: then it is that type again.

`carry` does both, and where a model is named it compares: what would come back changed is refused. Functions of the
user's own (`OwnType`) stand in place of a model.
"""

from cachebus.values.carry import Form, carry
from cachebus.values.codec import CODECS, F32, F32_ARRAY, MSGPACK, RAW, UNSET, ZLIB, decode, encode
from cachebus.values.extension import CorruptValue
from cachebus.values.models import check_model
from cachebus.values.own_types import Decode, Encode, OwnType
from cachebus.values.plain import UNCHANGING

__all__ = [
    "CODECS",
    "F32",
    "F32_ARRAY",
    "MSGPACK",
    "RAW",
    "UNCHANGING",
    "UNSET",
    "ZLIB",
    "CorruptValue",
    "Decode",
    "Encode",
    "Form",
    "OwnType",
    "carry",
    "check_model",
    "decode",
    "encode",
]
