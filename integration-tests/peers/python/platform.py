"""A platform team's program: `platform.py API DOCUMENT RESOURCE...` sets a document of resources in proto3 JSON, and
follows it to the clients. Each event is a line of JSON.

Needs grpcio alone: the few messages of isthmus.xds.v1 that it speaks are written out by hand, where a program of any size
would have protoc generate them from control.proto.
"""

import json
import sys

import grpc

SERVICE = "/isthmus.xds.v1.ResourceService/"
# How long all clients together may take.
WATCH_SECONDS = 30


def varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(encoded + bytes([number]))


def field(number, content):
    """A field that holds text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def fields(message):
    """The fields of a message that are numbers, texts or messages."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = message[at : at + value], at + value
        found[key >> 3] = value
    return found


def set_document(name, resources):
    """SetDocumentRequest { document { name, resources { json } } }"""
    content = b"".join(field(3, field(3, resource.encode())) for resource in resources)
    return field(1, field(1, name.encode()) + content)


def show(event):
    """ConvergenceEvent { totals | client }"""
    event = fields(event)
    if 1 in event:
        totals = fields(event[1])
        names = {2: "clients", 3: "accepted", 4: "refused", 5: "waiting", 6: "is_converged"}
        return {name: totals.get(number, 0) for number, name in names.items()}
    client = fields(event[2])
    verdict = {1: "accepted", 2: "refused", 3: "left"}[client[4]]
    return {"node_id": client[2].decode(), "verdict": verdict, "error": client.get(5, b"").decode()}


address, document, *resources = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    answer = channel.unary_unary(SERVICE + "SetDocument")(
        set_document(document, resources), timeout=WATCH_SECONDS, wait_for_ready=True
    )
    generation = fields(answer)[1]
    print(json.dumps({"generation": generation}), flush=True)
    watch = channel.unary_stream(SERVICE + "WatchConvergence")
    for event in watch(varint(1 << 3) + varint(generation), timeout=WATCH_SECONDS):
        print(json.dumps(show(event)), flush=True)
print(json.dumps({"is_done": True}), flush=True)
