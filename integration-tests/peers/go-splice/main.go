// A TCP proxy as people write it in Go: io.Copy between two connections, which Linux does by splice(2).
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go-splice LISTEN UPSTREAM")
		os.Exit(2)
	}
	listener, err := net.Listen("tcp4", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(client.(*net.TCPConn), os.Args[2])
	}
}

func serve(client *net.TCPConn, upstream string) {
	defer client.Close()
	connection, err := net.Dial("tcp4", upstream)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	server := connection.(*net.TCPConn)
	defer server.Close()
	var both sync.WaitGroup
	both.Add(2)
	forward := func(to, from *net.TCPConn) {
		defer both.Done()
		if _, err := io.Copy(to, from); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		to.CloseWrite()
	}
	go forward(server, client)
	go forward(client, server)
	both.Wait()
}
