"""A gRPC backend that answers every call with its name: `backend.py NAME`. Prints its port as a line of JSON."""

import concurrent.futures
import json
import sys

import grpc


class Greeter(grpc.GenericRpcHandler):
    """Takes and gives bytes, so that no code has to be generated."""

    def __init__(self, name):
        self._name = name.encode()

    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._name)


server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(max_workers=2), handlers=[Greeter(sys.argv[1])]
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(json.dumps({"port": port}), flush=True)
server.wait_for_termination()
