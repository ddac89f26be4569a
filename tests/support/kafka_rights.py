"""A Kafka that asks who may do what, and rights there that are taken and given back."""

from __future__ import annotations

from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from cachebus.tools.servers.kafka import KafkaServer

TOPIC, GROUP = 2, 3
READ, WRITE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS = 3, 4, 8, 10, 11
_LITERAL: Final = 3
_DENIED, _ALLOWED = 2, 3
_OF: Final = "User:ANONYMOUS", "*"


def guarded() -> KafkaServer:
    """A broker, not yet started, where everybody may do what nobody is denied."""
    return KafkaServer(
        settings={
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
    )


async def grant_all(admin: AIOKafkaAdminClient, topic: str) -> None:
    """What a node needs of the topic, right for right, so that one that is denied takes no other with it; and to set it
    up."""
    for operation in (READ, WRITE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS):
        await admin._send_request(CreateAclsRequest(TOPIC, topic, _LITERAL, *_OF, operation, _ALLOWED))


async def deny(admin: AIOKafkaAdminClient, resource: int, name: str, operation: int) -> None:
    """Nobody may do that with it from now on."""
    answer = await admin._send_request(CreateAclsRequest(resource, name, _LITERAL, *_OF, operation, _DENIED))
    assert not answer.creation_responses[0][0], answer


async def allow(admin: AIOKafkaAdminClient, resource: int, name: str, operation: int) -> None:
    """Everybody may again."""
    answer = await admin._send_request(DeleteAclsRequest(resource, name, _LITERAL, *_OF, operation, _DENIED))
    assert answer.filter_responses[0][2], answer
