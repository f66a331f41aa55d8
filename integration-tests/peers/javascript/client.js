// Calls a target one call after another until it is ended: `client.js TARGET`. Each result is a line of JSON.
'use strict';

const { setTimeout: pause } = require('node:timers/promises');

const grpc = require('@grpc/grpc-js');
require('@grpc/grpc-js-xds').register();

const METHOD = '/isthmus.test.Greeter/Greet';
// How long a call may take. One that finds no backend fails sooner.
const CALL_MS = 5000;
// Some hundred calls a second are enough to hit every step of a change.
const PAUSE_MS = 5;

const bytes = (value) => value;
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());

function greet() {
  const options = { deadline: Date.now() + CALL_MS };
  return new Promise((resolve) => {
    client.makeUnaryRequest(METHOD, bytes, bytes, Buffer.alloc(0), options, (error, answer) =>
      resolve(error ? { code: grpc.status[error.code], details: error.details } : { backend: answer.toString() }),
    );
  });
}

async function main() {
  for (let call = 0; ; call += 1) {
    console.log(JSON.stringify({ call, ...(await greet()) }));
    await pause(PAUSE_MS);
  }
}

main();
