// The same commands as ours, in front of go-control-plane.
//
// Set up at its best: one snapshot for all nodes of a group (the hash is node.cluster), so that a
// change is one SetSnapshot and the map of versions is built once, not once per node; types that a
// change does not touch keep their Resources. SnapshotCache with ads=false, as its documentation
// asks for delta. With -linear, EDS comes from a LinearCache behind a MuxCache instead.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
)

type byGroup struct{}

func (byGroup) ID(node *core.Node) string { return node.GetCluster() }

type change struct {
	group     string
	resources map[resource.Type]map[string]types.Resource
}

type control struct {
	ctx       context.Context
	snapshots cache.SnapshotCache
	endpoints *cache.LinearCache
	held      map[string]*cache.Snapshot
	prepared  map[string]change
	version   int
}

func main() {
	linear := flag.Bool("linear", false, "EDS from a LinearCache")
	flag.Parse()
	if err := run(*linear); err != nil {
		fmt.Fprintln(os.Stderr, "go-control-plane:", err)
		os.Exit(1)
	}
}

func run(linear bool) error {
	ctx := context.Background()
	c := &control{
		ctx:       ctx,
		snapshots: cache.NewSnapshotCache(false, byGroup{}, nil),
		held:      map[string]*cache.Snapshot{},
		prepared:  map[string]change{},
	}
	var serving cache.Cache = c.snapshots
	if linear {
		c.endpoints = cache.NewLinearCache(resource.EndpointType)
		serving = &cache.MuxCache{
			Classify:      func(r *cache.Request) string { return kind(r.GetTypeUrl()) },
			ClassifyDelta: func(r *cache.DeltaRequest) string { return kind(r.GetTypeUrl()) },
			Caches:        map[string]cache.Cache{"endpoints": c.endpoints, "rest": c.snapshots},
		}
	}
	// As the example server of go-control-plane has them, but as much patience with a busy client as ours has.
	grpcServer := grpc.NewServer(
		grpc.MaxConcurrentStreams(1000000),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 30 * time.Second, PermitWithoutStream: true}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(ctx, serving, nil))
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("listening", socket.Addr().(*net.TCPAddr).Port)
	go func() {
		if err := grpcServer.Serve(socket); err != nil {
			fmt.Fprintln(os.Stderr, "go-control-plane:", err)
			os.Exit(1)
		}
	}()

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := c.command(strings.Fields(lines.Text())); err != nil {
			return fmt.Errorf("%.60s: %w", lines.Text(), err)
		}
		fmt.Println("ok")
	}
	return lines.Err()
}

func kind(typeURL string) string {
	if typeURL == resource.EndpointType {
		return "endpoints"
	}
	return "rest"
}

func (c *control) command(words []string) error {
	switch {
	case len(words) == 3 && words[0] == "load":
		resources, err := read(words[2])
		if err != nil {
			return err
		}
		return c.apply(change{words[1], resources})
	case len(words) == 4 && words[0] == "prepare":
		resources, err := read(words[3])
		if err != nil {
			return err
		}
		c.prepared[words[1]] = change{words[2], resources}
		return nil
	case len(words) >= 3 && words[0] == "schedule":
		return c.schedule(words[1], words[2], words[3:])
	case len(words) == 1 && words[0] == "settle":
		// What is garbage is not held against it.
		debug.FreeOSMemory()
		return nil
	}
	return fmt.Errorf("no such command")
}

func (c *control) schedule(start, interval string, ids []string) error {
	planned, err := strconv.ParseInt(start, 10, 64)
	if err != nil {
		return err
	}
	step, err := strconv.ParseInt(interval, 10, 64)
	if err != nil {
		return err
	}
	for _, id := range ids {
		change, ok := c.prepared[id]
		if !ok {
			return fmt.Errorf("no change %s", id)
		}
		delete(c.prepared, id)
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return err
		}
		time.Sleep(time.Duration(planned - now.Nano()))
		if err := c.apply(change); err != nil {
			return err
		}
		planned += step
	}
	return nil
}

func (c *control) apply(change change) error {
	c.version++
	version := strconv.Itoa(c.version)
	snapshot := &cache.Snapshot{}
	if held := c.held[change.group]; held != nil {
		snapshot.Resources = held.Resources
	}
	isSnapshotChanged := false
	for typeURL, changed := range change.resources {
		if c.endpoints != nil && typeURL == resource.EndpointType {
			if err := c.endpoints.UpdateResources(changed, nil); err != nil {
				return err
			}
			continue
		}
		isSnapshotChanged = true
		index := cache.GetResponseType(typeURL)
		items := maps.Clone(snapshot.Resources[index].Items)
		if items == nil {
			items = make(map[string]types.ResourceWithTTL, len(changed))
		}
		for name, message := range changed {
			items[name] = types.ResourceWithTTL{Resource: message}
		}
		snapshot.Resources[index] = cache.Resources{Version: version, Items: items}
	}
	if !isSnapshotChanged {
		return nil
	}
	c.held[change.group] = snapshot
	return c.snapshots.SetSnapshot(c.ctx, change.group, snapshot)
}

func read(file string) (map[resource.Type]map[string]types.Resource, error) {
	bytes, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var message discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(bytes, &message); err != nil {
		return nil, err
	}
	resources := map[resource.Type]map[string]types.Resource{}
	for _, entry := range message.GetResources() {
		var decoded types.Resource
		switch typeURL := entry.GetResource().GetTypeUrl(); typeURL {
		case resource.ClusterType:
			decoded = &cluster.Cluster{}
		case resource.EndpointType:
			decoded = &endpoint.ClusterLoadAssignment{}
		case resource.ListenerType:
			decoded = &listener.Listener{}
		case resource.RouteType:
			decoded = &route.RouteConfiguration{}
		default:
			return nil, fmt.Errorf("%s is a type that the benchmark does not have", typeURL)
		}
		if err := proto.Unmarshal(entry.GetResource().GetValue(), decoded); err != nil {
			return nil, err
		}
		typeURL := entry.GetResource().GetTypeUrl()
		if resources[typeURL] == nil {
			resources[typeURL] = map[string]types.Resource{}
		}
		resources[typeURL][entry.GetName()] = decoded
	}
	return resources, nil
}
