// A gRPC peer: `peer client TARGET` calls a target one call after another until it is ended, and prints each result as a
// line of JSON; `peer backend NAME` answers every call with its name, and prints its port as a line of JSON.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
)

const (
	service = "isthmus.test.Greeter"
	method  = "/" + service + "/Greet"
	// How long a call may take. One that finds no backend fails sooner.
	callTimeout = 5 * time.Second
	// Some hundred calls a second are enough to hit every step of a change.
	pause = 5 * time.Millisecond
)

// Bytes as they are, so that no code has to be generated.
type raw struct{}

func (raw) Name() string { return "raw" }

func (raw) Marshal(value any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*value.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, value any) error {
	*value.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: peer client TARGET | peer backend NAME")
	}
	switch os.Args[1] {
	case "client":
		runClient(os.Args[2])
	case "backend":
		runBackend(os.Args[2])
	default:
		log.Fatalf("no role is called %q", os.Args[1])
	}
}

func runClient(target string) {
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})))
	if err != nil {
		log.Fatalf("%s cannot be called: %v", target, err)
	}
	results := json.NewEncoder(os.Stdout)
	for {
		result := map[string]string{}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		var request, answer []byte
		if err := connection.Invoke(ctx, method, &request, &answer); err != nil {
			result["code"] = codeName(err)
			result["details"] = status.Convert(err).Message()
		} else {
			result["backend"] = string(answer)
		}
		cancel()
		if err := results.Encode(result); err != nil {
			log.Fatalf("a result could not be printed: %v", err)
		}
		time.Sleep(pause)
	}
}

// The name that gRPC's specification has for a code; Go writes it in another way.
func codeName(err error) string {
	code := status.Code(err).String()
	if code == "Unavailable" {
		return "UNAVAILABLE"
	}
	return code
}

func runBackend(name string) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatalf("no free port: %v", err)
	}
	answer := []byte(name)
	greet := func(_ any, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		return stream.SendMsg(&answer)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(greet))
	port := map[string]int{"port": listener.Addr().(*net.TCPAddr).Port}
	if err := json.NewEncoder(os.Stdout).Encode(port); err != nil {
		log.Fatalf("the port could not be printed: %v", err)
	}
	log.Fatal(server.Serve(listener))
}
