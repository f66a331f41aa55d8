"""Calls a target one call after another until it is ended: `client.py TARGET`. Each result is a line of JSON."""

import itertools
import json
import sys
import time

import grpc

METHOD = "/isthmus.test.Greeter/Greet"
# How long a call may take. One that finds no backend fails sooner.
CALL_SECONDS = 5
# Some hundred calls a second are enough to hit every step of a change.
PAUSE_SECONDS = 0.005

with grpc.insecure_channel(sys.argv[1]) as channel:
    greet = channel.unary_unary(METHOD)
    for number in itertools.count():
        try:
            result = {"backend": greet(b"", timeout=CALL_SECONDS).decode()}
        except grpc.RpcError as error:
            result = {"code": error.code().name, "details": error.details()}
        print(json.dumps({"call": number, **result}), flush=True)
        time.sleep(PAUSE_SECONDS)
