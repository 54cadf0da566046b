// Command go-control-plane is a control plane made with the library of that name, for the end-to-end tests: aggregated
// and separate streams, state of the world and delta, and REST, all from one snapshot.
//
// It is driven over its standard streams, one JSON document a line. It takes snapshots, each with every type it is to
// have, and says when one is set or why it cannot be:
//
//	{"set": 1, "types": {"type.googleapis.com/...": {"version": "7", "resources": [{"@type": "...", ...}]}}}
//	{"set": 1, "error": "..."}
//
// With the first it begins to serve, and says where:
//
//	{"grpc": "127.0.0.1:1", "rest": "127.0.0.1:2"}
//
// It tells of every stream that opens or closes and every request (event). It ends with its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	clusters "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoints "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extensions "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listeners "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routes "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtimes "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secrets "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	// Messages inside the resources that tests push: JSON can only be read and written of those linked in.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// The largest message taken: a proxy names all its clusters in one.
const maxMessage = 64 << 20

// The largest snapshot taken on standard input.
const maxLine = 256 << 20

// Tests run one proxy per control plane, so every node has the same snapshot.
type anyNode struct{}

const theNode = "any"

func (anyNode) ID(*core.Node) string { return theNode }

// What happened on a stream.
type event struct {
	// "open", "closed", "request" or "fetch".
	Event  string `json:"event"`
	Stream int64  `json:"stream"`
	Delta  bool   `json:"delta"`
	// Of the stream when it opens (empty: aggregated), else of the request.
	TypeURL string `json:"type_url"`
	Node    string `json:"node,omitempty"`
	// The version a state-of-the-world request says it holds.
	Version string `json:"version,omitempty"`
	// The response this answers; empty for a request that answers none.
	Nonce       string   `json:"nonce,omitempty"`
	Names       []string `json:"names,omitempty"`
	Unsubscribe []string `json:"unsubscribe,omitempty"`
	// Resources a delta stream begins with, and their versions.
	Held map[string]string `json:"held,omitempty"`
	// The text of a refusal.
	Error string `json:"error,omitempty"`
}

// Standard output, a line at a time.
type lines struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (l *lines) say(document any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.out.Encode(document); err != nil {
		// The test is gone.
		os.Exit(0)
	}
}

func (l *lines) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamOpenFunc: func(_ context.Context, id int64, typeURL string) error {
			l.say(event{Event: "open", Stream: id, TypeURL: typeURL})
			return nil
		},
		StreamClosedFunc: func(id int64, _ *core.Node) {
			l.say(event{Event: "closed", Stream: id})
		},
		DeltaStreamOpenFunc: func(_ context.Context, id int64, typeURL string) error {
			l.say(event{Event: "open", Stream: id, Delta: true, TypeURL: typeURL})
			return nil
		},
		DeltaStreamClosedFunc: func(id int64, _ *core.Node) {
			l.say(event{Event: "closed", Stream: id, Delta: true})
		},
		StreamRequestFunc: func(id int64, r *discovery.DiscoveryRequest) error {
			l.say(sotw("request", id, r))
			return nil
		},
		FetchRequestFunc: func(_ context.Context, r *discovery.DiscoveryRequest) error {
			l.say(sotw("fetch", 0, r))
			return nil
		},
		StreamDeltaRequestFunc: func(id int64, r *discovery.DeltaDiscoveryRequest) error {
			l.say(event{
				Event: "request", Stream: id, Delta: true, TypeURL: r.GetTypeUrl(), Node: r.GetNode().GetId(),
				Nonce: r.GetResponseNonce(), Names: r.GetResourceNamesSubscribe(),
				Unsubscribe: r.GetResourceNamesUnsubscribe(), Held: r.GetInitialResourceVersions(),
				Error: r.GetErrorDetail().GetMessage(),
			})
			return nil
		},
	}
}

func sotw(what string, id int64, r *discovery.DiscoveryRequest) event {
	return event{
		Event: what, Stream: id, TypeURL: r.GetTypeUrl(), Node: r.GetNode().GetId(), Version: r.GetVersionInfo(),
		Nonce: r.GetResponseNonce(), Names: r.GetResourceNames(), Error: r.GetErrorDetail().GetMessage(),
	}
}

// A line of standard input.
type command struct {
	Set   int64 `json:"set"`
	Types map[string]struct {
		Version   string            `json:"version"`
		Resources []json.RawMessage `json:"resources"`
	} `json:"types"`
}

type answer struct {
	Set   int64  `json:"set"`
	Error string `json:"error,omitempty"`
}

func (c *command) snapshot() (*cache.Snapshot, error) {
	var snapshot cache.Snapshot
	for typeURL, held := range c.Types {
		index := cache.GetResponseType(typeURL)
		if index == types.UnknownType {
			return nil, fmt.Errorf("the library has no type %q", typeURL)
		}
		resources := make([]types.Resource, 0, len(held.Resources))
		for _, text := range held.Resources {
			var packed anypb.Any
			if err := protojson.Unmarshal(text, &packed); err != nil {
				return nil, fmt.Errorf("a resource of type %q: %w", typeURL, err)
			}
			message, err := packed.UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("a resource of type %q: %w", typeURL, err)
			}
			resources = append(resources, message)
		}
		snapshot.Resources[index] = cache.NewResources(held.Version, resources)
	}
	return &snapshot, nil
}

func set(snapshots cache.SnapshotCache, line []byte) answer {
	var c command
	err := json.Unmarshal(line, &c)
	if err == nil {
		var snapshot *cache.Snapshot
		if snapshot, err = c.snapshot(); err == nil {
			err = snapshots.SetSnapshot(context.Background(), theNode, snapshot)
		}
	}
	if err != nil {
		return answer{Set: c.Set, Error: err.Error()}
	}
	return answer{Set: c.Set}
}

func run() error {
	ads := flag.Bool("ads", false, "hold each response until all its resources are asked for, as one stream needs")
	grpcAt := flag.String("grpc", "127.0.0.1:0", "address of the gRPC services")
	restAt := flag.String("rest", "127.0.0.1:0", "address of the REST services")
	flag.Parse()

	out := &lines{out: json.NewEncoder(os.Stdout)}
	snapshots := cache.NewSnapshotCache(*ads, anyNode{}, log.LoggerFuncs{
		ErrorFunc: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	})
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, maxLine)

	xds := server.NewServer(context.Background(), snapshots, out.callbacks())
	services := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	discovery.RegisterAggregatedDiscoveryServiceServer(services, xds)
	clusters.RegisterClusterDiscoveryServiceServer(services, xds)
	endpoints.RegisterEndpointDiscoveryServiceServer(services, xds)
	listeners.RegisterListenerDiscoveryServiceServer(services, xds)
	routes.RegisterRouteDiscoveryServiceServer(services, xds)
	routes.RegisterScopedRoutesDiscoveryServiceServer(services, xds)
	secrets.RegisterSecretDiscoveryServiceServer(services, xds)
	runtimes.RegisterRuntimeDiscoveryServiceServer(services, xds)
	extensions.RegisterExtensionConfigDiscoveryServiceServer(services, xds)
	gateway := server.HTTPGateway{Server: xds}
	rest := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, status, err := gateway.ServeHTTP(r)
		if err != nil {
			http.Error(w, err.Error(), status)
			return
		}
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(status)
		// A client that went away asks again.
		_, _ = w.Write(body)
	})

	grpcListener, err := net.Listen("tcp", *grpcAt)
	if err != nil {
		return err
	}
	restListener, err := net.Listen("tcp", *restAt)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	// A first snapshot is there before the first stream, so that nobody takes an empty one for the removal of all.
	if input.Scan() {
		out.say(set(snapshots, input.Bytes()))
	}
	go func() { failed <- services.Serve(grpcListener) }()
	go func() { failed <- http.Serve(restListener, rest) }()
	out.say(map[string]string{"grpc": grpcListener.Addr().String(), "rest": restListener.Addr().String()})
	go func() {
		for input.Scan() {
			out.say(set(snapshots, input.Bytes()))
		}
		failed <- input.Err()
	}()
	return <-failed
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
