// Resolver asks Go's own resolver for the IPv4 addresses of its argument and prints one a line.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := net.Resolver{PreferGo: true}
	addrs, err := resolver.LookupIP(context.Background(), "ip4", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, addr := range addrs {
		fmt.Println(addr)
	}
}
