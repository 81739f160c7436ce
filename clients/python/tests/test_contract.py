"""The package's own enums are those of the API."""

import re
import uuid

import pytest

from p2p_node import ChangeCause, MessageState, Reason, Route, Trust
from p2p_node.message import new_id
from p2p_node.v1 import message_pb2 as pb


@pytest.mark.parametrize("enum", [ChangeCause, MessageState, Reason, Route, Trust])
def test_enums_match(enum: type[ChangeCause]) -> None:
    proto = pb.DESCRIPTOR.enum_types_by_name[enum.__name__]
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.__name__).upper() + "_"
    theirs = {value.name.removeprefix(prefix): value.number for value in proto.values}
    ours = {each.name: int(each) for each in enum}
    if enum is ChangeCause:
        ours["UNSPECIFIED"] = ours.pop("SNAPSHOT")
    assert ours == theirs
    assert enum(999) == 0


def test_ids_are_uuids_that_grow_with_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all((uuid.UUID(each).version, uuid.UUID(each).variant) == (7, uuid.RFC_4122) for each in ids)
    assert ids[0][:13] <= ids[-1][:13]
