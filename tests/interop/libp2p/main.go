// A node of go-libp2p, for tests of p2p-node against software that is not its
// own: as a relay, or as a peer behind a NAT that is reached through a relay
// and punches holes by DCUtR.
//
//	libp2p relay --listen /ip4/0.0.0.0/udp/4001/quic-v1
//	libp2p peer --relay /ip4/128.66.0.1/udp/4001/quic-v1/p2p/12D3Koo...
//
// It prints one JSON object a line: {"event":"ready",...} first, then
// "reserved", "punches" once it takes part in hole punching, "connected" and
// "disconnected". It takes "connect MULTIADDR" and "ping PEER" on standard
// input, answers each with a line, and ends with it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
)

// list is a flag that can be given more than once.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// printer writes one object a line.
type printer struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

func (p *printer) print(name string, fields map[string]any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	fields["event"] = name
	if err := p.encoder.Encode(fields); err != nil {
		os.Exit(1)
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say relay or peer")
	}
	var listen, relays list
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.Var(&listen, "listen", "where to listen; repeatable")
	flags.Var(&relays, "relay", "the relay to reserve at, with its peer id; repeatable")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if len(listen) == 0 {
		listen = list{"/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001"}
	}
	options := []libp2p.Option{libp2p.ListenAddrStrings(listen...)}
	switch args[0] {
	case "relay":
		options = append(options, libp2p.ForceReachabilityPublic(), libp2p.EnableRelayService(relay.WithInfiniteLimits()))
	case "peer":
		more, err := behindNAT(relays)
		if err != nil {
			return err
		}
		options = append(options, more...)
	default:
		return fmt.Errorf("%q is neither relay nor peer", args[0])
	}
	node, err := libp2p.New(options...)
	if err != nil {
		return err
	}
	defer node.Close()
	out := &printer{encoder: json.NewEncoder(os.Stdout)}
	watch(node, out)
	out.print("ready", map[string]any{"peer_id": node.ID().String(), "addresses": texts(node.Addrs())})
	return obey(node, out)
}

// behindNAT makes a peer that holds a reservation and punches holes. A test
// has one or two relays to tell it how it is seen; go-libp2p wants four.
func behindNAT(relays []string) ([]libp2p.Option, error) {
	observedaddrs.ActivationThresh = 1
	var static []peer.AddrInfo
	for _, text := range relays {
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			return nil, fmt.Errorf("relay %q: %w", text, err)
		}
		static = append(static, *info)
	}
	return []libp2p.Option{
		libp2p.ForceReachabilityPrivate(),
		libp2p.EnableAutoRelayWithStaticRelays(static, autorelay.WithBootDelay(0), autorelay.WithMinInterval(time.Second)),
		libp2p.EnableHolePunching(holepunch.DirectDialTimeout(2 * time.Second)),
	}, nil
}

// watch prints what happens.
func watch(node host.Host, out *printer) {
	row := func(conn network.Conn) map[string]any {
		return map[string]any{
			"peer_id": conn.RemotePeer().String(),
			"address": conn.RemoteMultiaddr().String(),
			"relayed": conn.Stat().Limited || isCircuit(conn.RemoteMultiaddr()),
			"inbound": conn.Stat().Direction == network.DirInbound,
		}
	}
	node.Network().Notify(&network.NotifyBundle{
		ConnectedF:    func(_ network.Network, conn network.Conn) { out.print("connected", row(conn)) },
		DisconnectedF: func(_ network.Network, conn network.Conn) { out.print("disconnected", row(conn)) },
	})
	protocols, err := node.EventBus().Subscribe(new(event.EvtLocalProtocolsUpdated))
	if err != nil {
		return
	}
	go func() {
		// Not before it has learnt its own address; it misses the connections
		// that were made before.
		for !slices.Contains(node.Mux().Protocols(), holepunch.Protocol) {
			if _, open := <-protocols.Out(); !open {
				return
			}
		}
		out.print("punches", map[string]any{})
		for range protocols.Out() {
		}
	}()
	addresses, err := node.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return
	}
	go func() {
		for range addresses.Out() {
			var circuits []ma.Multiaddr
			for _, address := range node.Addrs() {
				if isCircuit(address) {
					circuits = append(circuits, address)
				}
			}
			if len(circuits) > 0 {
				out.print("reserved", map[string]any{"addresses": texts(circuits)})
			}
		}
	}()
}

// obey does what standard input says, until it ends.
func obey(node host.Host, out *printer) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, argument, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		var err error
		answer := map[string]any{"verb": verb, "argument": argument}
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		switch verb {
		case "connect":
			err = connect(ctx, node, argument)
		case "ping":
			answer["rtt_ms"], err = measure(ctx, node, argument)
		default:
			err = fmt.Errorf("%q is neither connect nor ping", verb)
		}
		cancel()
		if err != nil {
			answer["error"] = err.Error()
		}
		out.print("done", answer)
	}
	return lines.Err()
}

func connect(ctx context.Context, node host.Host, text string) error {
	info, err := peer.AddrInfoFromString(text)
	if err != nil {
		return err
	}
	return node.Connect(network.WithAllowLimitedConn(ctx, "test"), *info)
}

func measure(ctx context.Context, node host.Host, text string) (float64, error) {
	id, err := peer.Decode(text)
	if err != nil {
		return 0, err
	}
	result := <-ping.Ping(network.WithAllowLimitedConn(ctx, "test"), node, id)
	return float64(result.RTT) / float64(time.Millisecond), result.Error
}

func isCircuit(address ma.Multiaddr) bool {
	_, err := address.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

func texts(addresses []ma.Multiaddr) []string {
	all := make([]string, 0, len(addresses))
	for _, address := range addresses {
		all = append(all, address.String())
	}
	return all
}
