// A gRPC backend that answers every call with its name: `backend.js NAME`. Prints its port as a line of JSON.
'use strict';

const grpc = require('@grpc/grpc-js');

const bytes = (value) => value;
// Takes and gives bytes, so that no code has to be generated.
const service = {
  greet: {
    path: '/isthmus.test.Greeter/Greet',
    requestStream: false,
    responseStream: false,
    requestSerialize: bytes,
    requestDeserialize: bytes,
    responseSerialize: bytes,
    responseDeserialize: bytes,
  },
};

const name = Buffer.from(process.argv[2]);
const server = new grpc.Server();
server.addService(service, { greet: (call, callback) => callback(null, name) });
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(JSON.stringify({ port }));
});
